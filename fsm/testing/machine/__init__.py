"""What every machine must do: machine_test."""

try:
    import hypothesis  # noqa: F401 - said here, where everything of this package passes
except ImportError as missing:
    raise ImportError(
        "machine_test needs hypothesis: pip install 'agent-fsm[testing]'", name=missing.name
    ) from missing
