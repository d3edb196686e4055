"""The plan: plain data that says what the next iteration does. Strategies build plans, executors run them.

An iteration is the device's pass over the L + 1 *boundaries* of the model. Boundary 0 embeds and runs pre-attention of
layer 0; boundary l runs post-attention of layer l - 1 and pre-attention of layer l; boundary L runs post-attention of
the last layer and samples. Between boundaries l and l + 1 stands the attention of layer l: on the device for device
rows, on the host for the rows of cohorts.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillChunk:
    """A run of consecutive prompt tokens of one request, computed on the device.

    Attributes:
        request_id: whose tokens.
        slot: row of the executor's per-request state.
        start: position of the first token, a multiple of the page size.
        tokens: the token ids, at least one.
        samples: True for the last chunk of a prompt, whose last token's logits give an output token.
        step: index of that output token within the request.
    """

    request_id: int
    slot: int
    start: int
    tokens: tuple[int, ...]
    samples: bool
    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeRow:
    """One request's next token, fed from the token that its slot sampled last.

    Attributes:
        request_id: whose token.
        slot: row of the executor's per-request state.
        length: tokens in the request's context, the one being fed included.
        step: index of the output token that this row samples.
    """

    request_id: int
    slot: int
    length: int
    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NewPages:
    """Pages a request received for this iteration: entries `first, first+1, ...` of its page table row."""

    slot: int
    first: int
    pages: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cohort:
    """Host rows that advance together, and the boundaries they ride in this iteration.

    A cohort rides every boundary from `first` to `last`. It boards at `first` with the host's result of layer
    `first - 1` (at 0 with its last tokens), and where `last < L` is parked after it: its queries, keys and values of
    layer `last` are with the host, its residuals stay on the device until it boards again at `last + 1`. Between two
    boundaries of one iteration the device waits for the host.

    Attributes:
        id: unique among the cohorts of a scheduler; a cohort lives for one token.
        rows: its rows, always in the same places; None where a request has ended meanwhile.
        first, last: boundaries, 0 <= first <= last <= L.
    """

    id: int
    rows: tuple[DecodeRow | None, ...]
    first: int
    last: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One pass of the device over one boundary's weights.

    Attributes:
        boundary: 0 to L.
        device: the device rows and prompt chunks ride.
        cohort: id of the cohort that rides, if any.
    """

    boundary: int
    device: bool
    cohort: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Eviction:
    """A request whose KV leaves for the host before this iteration's boundaries; it is a host request from then on.

    Attributes:
        request_id: who moves.
        slot: row of the executor's per-request state, kept.
        first: pages in front of those, which were given back.
        device_pages, host_pages: as many of both, in order of position.
    """

    request_id: int
    slot: int
    first: int = 0
    device_pages: tuple[int, ...]
    host_pages: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetch:
    """A request whose KV begins to move to the device beside this iteration; it rests until a plan lands it."""

    request_id: int
    host_pages: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Landing:
    """A request whose fetched KV enters the device's pages before this iteration; it is a device request from then on.

    Attributes:
        request_id: who lands.
        slot: row of the executor's per-request state, kept.
        first: pages in front of those, which were given back.
        device_pages: as many as were fetched, in order of position.
    """

    request_id: int
    slot: int
    first: int = 0
    device_pages: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One iteration.

    Attributes:
        number: counts the plans of a scheduler from 0.
        num_layers: L.
        strategy: name of what built the plan; for people, an executor needs only the rest.
        sliding_window: tokens that each attends to at most; for predictions. None for all.
        prefill: chunks of prompts, first come first.
        decode: device requests that produce one token each.
        cohorts: host rows that ride in this iteration. The first one of a boundary shares the device rows' pass over
            the weights.
        new_pages: changes to the device page tables, applied before the iteration runs.
        new_host_pages: the same for the host page tables.
        evictions, fetches, landings: moves of KV between the two sides. Landings come first, then evictions.
    """

    number: int
    num_layers: int
    strategy: str
    sliding_window: int | None = None
    prefill: tuple[PrefillChunk, ...] = ()
    decode: tuple[DecodeRow, ...] = ()
    cohorts: tuple[Cohort, ...] = ()
    new_pages: tuple[NewPages, ...] = ()
    new_host_pages: tuple[NewPages, ...] = ()
    evictions: tuple[Eviction, ...] = ()
    fetches: tuple[Fetch, ...] = ()
    landings: tuple[Landing, ...] = ()

    def attended(self, length: int) -> int:
        """Return the tokens of a context that its last one attends to."""
        return length if self.sliding_window is None else min(length, self.sliding_window)

    @property
    def has_device_rows(self) -> bool:
        """Whether anything rides that has its KV on the device."""
        return bool(self.prefill or self.decode)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The passes over the weights in the order in which the device runs them."""
        stages = []
        for boundary in range(self.num_layers + 1):
            riders = [cohort.id for cohort in self.cohorts if cohort.first <= boundary <= cohort.last]
            if self.has_device_rows:
                stages.append(Stage(boundary=boundary, device=True, cohort=riders[0] if riders else None))
                riders = riders[1:]
            stages += [Stage(boundary=boundary, device=False, cohort=rider) for rider in riders]
        return tuple(stages)

    @property
    def arriving(self) -> tuple[Cohort, ...]:
        """The cohorts that finish a token in this iteration."""
        return tuple(cohort for cohort in self.cohorts if cohort.last == self.num_layers)

    @property
    def sampling_requests(self) -> tuple[int, ...]:
        """Ids of the requests that receive a token, in the order in which an executor returns the tokens."""
        prompts = tuple(c.request_id for c in self.prefill if c.samples)
        hosted = tuple(row.request_id for cohort in self.arriving for row in cohort.rows if row is not None)
        return prompts + tuple(r.request_id for r in self.decode) + hosted

    @property
    def prefill_tokens(self) -> int:
        """Prompt tokens computed in this iteration."""
        return sum(len(chunk.tokens) for chunk in self.prefill)

    def __str__(self) -> str:
        chunks = ", ".join(f"{c.request_id}[{c.start}:{c.start + len(c.tokens)}]" for c in self.prefill) or "-"
        rows = ", ".join(f"{r.request_id}@{r.length}" for r in self.decode) or "-"
        parts = [f"plan {self.number} {self.strategy}: prefill {chunks}; decode {rows}"]
        parts += [_cohort(cohort) for cohort in self.cohorts]
        for name, moves in (("evict", self.evictions), ("fetch", self.fetches), ("land", self.landings)):
            if moves:
                parts.append(f"{name} {', '.join(str(move.request_id) for move in moves)}")
        return "; ".join(parts)


def _cohort(cohort: Cohort) -> str:
    rows = ", ".join("-" if row is None else f"{row.request_id}@{row.length}" for row in cohort.rows)
    where = f"{cohort.first}" if cohort.first == cohort.last else f"{cohort.first}..{cohort.last}"
    return f"cohort {cohort.id} at {where}: {rows}"
