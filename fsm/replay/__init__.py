"""Recorded runs, played again as events or by agents."""
