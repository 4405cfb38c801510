"""Threads, locks and forks: what must hold in any process."""
