"""Measures the profile of a cost model on this machine, and keeps it."""
