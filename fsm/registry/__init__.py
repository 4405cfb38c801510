"""The one way to change an execution: commands, the committer, the catalog of machines."""
