"""What can be said of a table for certain: its invariants, what another table breaks, what a journal deviates from.

Nothing here runs an execution. The modules read machines, journals and histories that they are handed.
"""
