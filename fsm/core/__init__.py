"""Pure: what follows from a record, an event and a table."""
