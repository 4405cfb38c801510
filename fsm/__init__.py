"""One declared state machine and one registry for the executions of AI agents."""
