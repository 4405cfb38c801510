"""What every store must do: StoreConformance."""

try:
    import pytest  # noqa: F401 - said here, where everything of this package passes
except ImportError as missing:
    raise ImportError(
        "the stores' conformance suite needs pytest: pip install 'agent-fsm[testing]'", name=missing.name
    ) from missing
