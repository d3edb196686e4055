"""Requests, page accounting, plans and the scheduler: plain data, no JAX."""
