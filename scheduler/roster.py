"""The lengths of all requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

Lengths = Sequence[tuple[int, int]]
"""(tokens of the context, output tokens still to come at most) of requests, in order of arrival."""


class Roster(NamedTuple):
    """The lengths of all requests.

    Attributes:
        device: of those on the device, those included whose prompts are being computed.
        host: of those on the host.
        waiting: of those without pages.
        arrivals: of the requests in that order, numbers that increase with arrival; empty where they came so.
    """

    device: Lengths = ()
    host: Lengths = ()
    waiting: Lengths = ()
    arrivals: Sequence[int] = ()

    @property
    def requests(self) -> int:
        """How many there are."""
        return len(self.device) + len(self.host) + len(self.waiting)
