"""The lengths of all requests, and groups of like ones that stand for them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

MOST = 48
"""Groups of requests on one side at most."""

MOST_WAITING = 128
"""Groups of waiting requests at most."""

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


class Group:
    """Requests taken together: how many, their mean context and what they still have to produce on average."""

    __slots__ = ("context", "count", "left")

    def __init__(self, count: int, context: float, left: float) -> None:
        self.count = count
        self.context = context
        self.left = left

    @classmethod
    def of(cls, lengths: Lengths) -> Group:
        """Return some requests as one group."""
        count = len(lengths)
        return cls(count, sum(each[0] for each in lengths) / count, sum(each[1] for each in lengths) / count)

    def copy(self) -> Group:
        """Return a group that changes by itself."""
        return Group(self.count, self.context, self.left)

    def take(self, count: int) -> Group:
        """Split some requests off."""
        self.count -= count
        return Group(count, self.context, self.left)

    def absorb(self, other: Group) -> None:
        """Take the requests of another group in."""
        count = self.count + other.count
        self.context = (self.count * self.context + other.count * other.context) / count
        self.left = (self.count * self.left + other.count * other.left) / count
        self.count = count


def grouped(lengths: Lengths, most: int) -> list[Group]:
    """Return requests in at most so many groups that keep what matters: the order of arrival, and when the last end.

    So many requests or fewer stay as they are. Of more, neighbours form parts of even size, each in three groups by
    what is left, and the request with most left is alone.
    """
    if len(lengths) <= most:
        return [Group(1, *each) for each in lengths]
    longest = max(range(len(lengths)), key=lambda at: lengths[at][1])
    size = math.ceil(3 * len(lengths) / (most - 1))
    found: list[Group] = []
    for start in range(0, len(lengths), size):
        part = lengths[start : start + size]
        ranked = sorted(part, key=lambda each: each[1])
        if ranked[0] == ranked[-1]:
            found.append(Group.of(ranked))
            continue
        alone = [ranked.pop()] if start <= longest < start + size else []
        cuts = (0, len(ranked) // 2, len(ranked) * 17 // 20, len(ranked))
        found += [Group.of(ranked[a:b]) for a, b in itertools.pairwise(cuts) if b > a]
        found += [Group(1, *each) for each in alone]
    return found


def join(side: list[Group], group: Group) -> None:
    """Take a group in, the youngest; where there are too many, the likest neighbours become one."""
    if side and abs(side[-1].left - group.left) <= 1:
        side[-1].absorb(group)
        return
    side.append(group)
    if len(side) > MOST:
        at = min(range(len(side) - 1), key=lambda at: abs(side[at].left - side[at + 1].left))
        side[at].absorb(side.pop(at + 1))


def produce(side: list[Group], tokens: float) -> None:
    """Let every request produce tokens; those that have ended leave."""
    for group in side:
        group.context += tokens
        group.left -= tokens
    side[:] = [group for group in side if group.left > 1e-6]


def kv_tokens(side: list[Group]) -> float:
    """Return the tokens of all contexts together."""
    tokens = 0.0
    for group in side:
        tokens += group.count * group.context
    return tokens
