"""What could be done with all requests from now on."""

from __future__ import annotations

from typing import NamedTuple

from ..strategies import DEVICE_ONLY


class Course(NamedTuple):
    """What could be done from now on.

    Attributes:
        strategy: how host requests ride.
        most: requests that may be on the host.
        riding: of these under way at once, the others take turns.
        cohorts: of async_overlap that are under way at once; L + 1 if 0.
        rests: whether host rows rest in iterations in which they do not make up for the time that they take, as they
            may do beside prompts alone.
    """

    strategy: str
    most: int = 0
    riding: int = 0
    cohorts: int = 0
    rests: bool = False


ALONE = Course(DEVICE_ONLY.name)
