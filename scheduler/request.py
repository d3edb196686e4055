"""A request as the scheduler sees it: token counts, pages and progress, no arrays and no text."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True, kw_only=True, eq=False)
class Request:
    """One sequence being generated.

    A request is *waiting* while it has no slot, *prefilling* while `computed < prefill_target`, *decoding* after that.

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
        pages: device pages held, in order of position.
        preemptions: how often its pages were taken away.
    """

    id: int
    prompt: tuple[int, ...]
    max_tokens: int
    output: list[int] = field(default_factory=list)
    in_flight: int = 0
    computed: int = 0
    prefill_target: int = 0
    slot: int | None = None
    pages: list[int] = field(default_factory=list)
    preemptions: int = 0

    def __post_init__(self) -> None:
        if not self.prompt:
            raise ValueError(f"request {self.id} has an empty prompt; at least one token is needed")
        if self.max_tokens < 1:
            raise ValueError(f"request {self.id} has max_tokens={self.max_tokens}; at least 1 is needed")

    @property
    def length(self) -> int:
        """Tokens of the context, those still in flight included."""
        return len(self.prompt) + self.steps

    @property
    def steps(self) -> int:
        """Output tokens sampled so far, those still in flight included."""
        return len(self.output) + self.in_flight

    @property
    def is_prefilling(self) -> bool:
        return self.computed < self.prefill_target
