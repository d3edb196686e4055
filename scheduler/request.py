"""A request as the scheduler sees it: token counts, pages and progress, no arrays and no text."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Side = Literal["device", "host"]


@dataclass(slots=True, kw_only=True, eq=False)
class Request:
    """One sequence being generated.

    A request is *waiting* while it has no slot, *prefilling* while `computed < prefill_target`, *decoding* after that.
    A decoding request has its KV on one side. On the host it *rests* between two tokens, is in a cohort for the length
    of a token, or is being fetched.

    Attributes:
        id: unique and increasing with arrival; the scheduler serves lower ids first.
        prompt: token ids, at least one.
        max_tokens: output tokens at most, at least one.
        output: tokens that have arrived from the device.
        in_flight: tokens sampled by submitted plans that have not arrived yet.
        computed: tokens whose K and V are written by submitted plans.
        prefill_target: tokens to prefill after the last admission: the prompt and, after a preemption, the output so
            far.
        slot: row of the executor's per-request state, None while waiting.
        side: where its KV is.
        pages: device pages held, in order of position; a fetch reserves them.
        host_pages: the same on the host.
        given_back: pages in front of those, which no token will attend to any more.
        cohort: id of the cohort it is in, if any.
        fetching: its KV is on the way to the device.
        fetched: its KV has come there and waits for a plan that lands it.
        last_turn: number of the plan with which it last began a token on the host.
        preemptions: how often its pages were taken away and its tokens computed again.
        evictions, landings: how often it moved to the host, and back.
    """

    id: int
    prompt: tuple[int, ...]
    max_tokens: int
    output: list[int] = field(default_factory=list)
    in_flight: int = 0
    computed: int = 0
    prefill_target: int = 0
    slot: int | None = None
    side: Side = "device"
    pages: list[int] = field(default_factory=list)
    host_pages: list[int] = field(default_factory=list)
    given_back: int = 0
    cohort: int | None = None
    fetching: bool = False
    fetched: bool = False
    last_turn: int = -1
    preemptions: int = 0
    evictions: int = 0
    landings: int = 0

    def __post_init__(self) -> None:
        if not self.prompt:
            raise ValueError(f"request {self.id} has an empty prompt; at least one token is needed")
        if self.max_tokens < 1:
            raise ValueError(f"request {self.id} has max_tokens={self.max_tokens}; at least 1 is needed")

    @property
    def held_slot(self) -> int:
        """The slot of a request that has one."""
        assert self.slot is not None
        return self.slot

    @property
    def length(self) -> int:
        """Tokens of the context, those still in flight included."""
        # Asked of every request several times before each plan, as `wants_token` is: without further properties.
        return len(self.prompt) + len(self.output) + self.in_flight

    @property
    def steps(self) -> int:
        """Output tokens sampled so far, those still in flight included."""
        return len(self.output) + self.in_flight

    @property
    def is_prefilling(self) -> bool:
        return self.computed < self.prefill_target

    @property
    def wants_token(self) -> bool:
        """Whether the next thing it needs is a decode step."""
        return self.computed >= self.prefill_target and len(self.output) + self.in_flight < self.max_tokens

    @property
    def is_resting(self) -> bool:
        """Whether it is on the host between two tokens."""
        return self.side == "host" and self.cohort is None and not self.fetching
