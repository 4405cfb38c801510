"""Agent frameworks of others, tracked: one module for each, imported only by who asks for it."""
