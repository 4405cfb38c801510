"""`python -m fsm.audit PATH` does what `fsm audit PATH` does."""

from fsm.audit.cli import app

if __name__ == "__main__":
    app()
