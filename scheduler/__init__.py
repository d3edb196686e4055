"""Requests, page accounting, plans and the scheduler: plain data, no JAX."""

from .page_table import OutOfPages, PageTable
from .plan import DecodeRow, NewPages, Plan, PrefillChunk
from .request import Request
from .scheduler import Scheduler

__all__ = ["DecodeRow", "NewPages", "OutOfPages", "PageTable", "Plan", "PrefillChunk", "Request", "Scheduler"]
