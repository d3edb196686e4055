"""The plan: plain data that says what the next iteration does. Strategies build plans, an executor runs them."""

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
class Plan:
    """One iteration: every row goes through all layers on the device.

    Attributes:
        number: counts the plans of a scheduler from 0.
        prefill: chunks of prompts, first come first.
        decode: requests that produce one token each.
        new_pages: changes to the page tables, to be applied before the iteration runs.
    """

    number: int
    prefill: tuple[PrefillChunk, ...]
    decode: tuple[DecodeRow, ...]
    new_pages: tuple[NewPages, ...]

    @property
    def sampling_requests(self) -> tuple[int, ...]:
        """Ids of the requests that receive a token, in the order in which an executor returns the tokens."""
        return tuple(c.request_id for c in self.prefill if c.samples) + tuple(r.request_id for r in self.decode)

    @property
    def prefill_tokens(self) -> int:
        """Prompt tokens computed in this iteration."""
        return sum(len(chunk.tokens) for chunk in self.prefill)

    def __str__(self) -> str:
        chunks = ", ".join(f"{c.request_id}[{c.start}:{c.start + len(c.tokens)}]" for c in self.prefill) or "-"
        rows = ", ".join(f"{r.request_id}@{r.length}" for r in self.decode) or "-"
        return f"plan {self.number}: prefill {chunks}; decode {rows}"
