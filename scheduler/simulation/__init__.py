"""Serving in virtual time: the scheduler's rules over requests in sums."""
