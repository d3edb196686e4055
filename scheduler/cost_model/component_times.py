"""Times of the parts of an iteration: a profile's, each multiplied by its term's correction."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple, TypeVar

from .curve import Curve
from .prediction import Load, Terms
from .profile import Padding, Profile

NO_CORRECTION = Terms(1.0, 1.0, 1.0, 1.0, 1.0, 1.0)


N = TypeVar("N", int, float)


class _Known(dict[N, N]):
    """Numbers by count, each worked out once."""

    def __init__(self, number: Callable[[N], N]) -> None:
        super().__init__()
        self._number = number

    def __missing__(self, count: N) -> N:
        self[count] = number = self._number(count)
        return number


class CohortCost(NamedTuple):
    """What a cohort of equal rows takes.

    Attributes:
        rows: host requests.
        kv_tokens: tokens of their contexts together.
        width: rows that they take in a pass.
        job: attention in one layer.
        hop: delay of a handover.
        boarding: what a pass takes more for them, beside their rows.
    """

    rows: int
    kv_tokens: float
    width: int
    job: float
    hop: float
    boarding: float


class Costs:
    """What passes, attention and transfers take.

    Args:
        profile: the times.
        factors: what each term's times are multiplied by.
    """

    def __init__(self, profile: Profile, factors: Terms = NO_CORRECTION) -> None:
        self.profile = profile
        self.factors = factors
        self.num_layers = profile.num_layers
        self._layers = _Known[float](lambda width: profile.layer(width) * factors.linear if width > 0 else 0.0)
        self._heads = _Known[float](lambda rows: profile.head(rows) * factors.linear if rows > 0 else 0.0)
        self._host_widths = _Known[int](partial(Padding.fit, profile.padding.host_rows))
        self._hops = _Known[float](lambda width: profile.hop(width) * factors.transfer)
        self._boardings = _Known[float](lambda width: profile.boarding(width) * factors.transfer)

    def overhead(self, *, cohorts: bool) -> float:
        """Return what an iteration takes beyond its parts, with or without cohorts."""
        seconds = self.profile.iteration_overhead + (self.profile.stepwise_overhead if cohorts else 0.0)
        return seconds * self.factors.overhead

    def device_width(self, load: Load) -> int:
        """Return the rows that device requests and prompts take in a pass."""
        return self.width(load.device_rows, load.prefill_tokens)

    def width(self, rows: int, prompt_tokens: int) -> int:
        """Return what `device_width` does, of counts."""
        padding = self.profile.padding
        prompt = Padding.fit(padding.prompt_tokens, prompt_tokens)
        return prompt + Padding.fit(padding.mixed_rows if prompt else padding.rows, rows)

    def host_width(self, rows: int) -> int:
        """Return the rows that a cohort takes in a pass."""
        return self._host_widths[rows]

    def layer(self, width: float) -> float:
        """Return one layer's linear time."""
        return self._layers[width]

    def head(self, rows: float) -> float:
        """Return the time of embedding, head and sampling."""
        return self._heads[rows]

    def linear(self, boundary: int, width: float) -> float:
        """Return the linear time of a boundary's pass, the head aside."""
        return self.share(boundary) * self._layers[width]

    def share(self, boundary: int) -> float:
        """Return how much of a layer's linear time a boundary's pass takes, the head aside."""
        if boundary == 0:
            return self.profile.pre_share
        return 1.0 - self.profile.pre_share if boundary == self.num_layers else 1.0

    def device_attention(self, load: Load) -> float:
        """Return the time of the device rows' attention through all layers."""
        seconds = self.profile.device_attention(load.device_rows, load.device_kv_tokens)
        return seconds * self.factors.device_attention

    def prefill_attention(self, load: Load) -> float:
        """Return the time of the prompts' attention through all layers."""
        if not load.prefill_tokens:
            return 0.0
        return self.profile.prefill_attention(load.prefill_pairs) * self.factors.prefill_attention

    def host_attention(self, rows: float, kv_tokens: float) -> float:
        """Return the time of a cohort's attention in one layer."""
        return self.profile.host_attention(rows, kv_tokens) * self.factors.host_attention

    def hop(self, width: float) -> float:
        """Return the delay of handing a cohort to the host and back."""
        return self._hops[width]

    def boarding(self, width: float) -> float:
        """Return what a cohort adds to a pass beyond its rows."""
        return self._boardings[width]

    def cohort(self, rows: int, row_tokens: float) -> CohortCost:
        """Return what a cohort of so many rows with contexts of so many tokens takes."""
        width, tokens = self._host_widths[rows], rows * row_tokens
        return CohortCost(
            rows, tokens, width, self.host_attention(rows, tokens), self._hops[width], self._boardings[width]
        )

    def covers_cohort(self, cohort: CohortCost) -> bool:
        """Whether the profile covers what a cohort takes, its passes aside."""
        profile, width = self.profile, cohort.width
        host = profile.host_attention.covers(cohort.rows, cohort.kv_tokens)
        return host and profile.hop.covers(width) and profile.boarding.covers(width)

    def migration(self, tokens: float) -> float:
        """Return the time of moving tokens between the sides."""
        return self.profile.migration(tokens) * self.factors.transfer if tokens > 0 else 0.0

    def covers(self, load: Load) -> bool:
        """Whether the profile covers all counts of an iteration."""
        return all(curve.covers(count) for _, curve, count in self._reads(load))

    def beyond(self, load: Load) -> tuple[str, ...]:
        """Return the counts of an iteration that lie outside of what the profile covers, in words."""
        return tuple(curve.outside(count, name) for name, curve, count in self._reads(load) if not curve.covers(count))

    def moving_beyond(self, tokens: float) -> tuple[str, ...]:
        """Return the same of moving a request with so many tokens."""
        curve = self.profile.migration
        return () if tokens <= 0 or curve.covers(tokens) else (curve.outside(tokens, "tokens that move"),)

    def _reads(self, load: Load) -> Iterator[tuple[str, Curve, float]]:
        """Yield what an iteration's times are read from: what is counted, the curve, the count."""
        profile, width = self.profile, self.device_width(load)
        attention, host = profile.device_attention, profile.host_attention
        if load.device_rows:
            yield "device rows", attention.rows, load.device_rows
            yield "cached tokens on the device", attention.tokens, load.device_kv_tokens
        if load.prefill_tokens:
            yield "pairs of prompt tokens", profile.prefill_attention, load.prefill_pairs
        if width:
            yield "rows of a pass", profile.layer, width
        for cohort in load.cohorts:
            own = self.host_width(cohort.width or cohort.rows)
            yield "rows of a pass", profile.layer, width + own
            yield "rows of a cohort", host.rows, cohort.rows
            yield "cached tokens of a cohort", host.tokens, cohort.kv_tokens
            yield "rows of a handover", profile.hop, own
            yield "rows that board", profile.boarding, own
        arriving = sum(cohort.rows for cohort in load.cohorts if cohort.last == self.num_layers)
        if sampled := load.device_tokens + arriving:
            yield "rows that sample", profile.head, sampled
        if load.evicted_tokens:
            yield "tokens that move", profile.migration, load.evicted_tokens
        if load.fetched_tokens:
            yield "tokens that move", profile.migration, load.fetched_tokens
