"""What a request returns; names are vLLM's."""

from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length", "abort"]
"""`stop`: EOS, a stop token or a stop string; `length`: the limit of tokens; `abort`: cancelled or failed."""


@dataclass(frozen=True, kw_only=True)
class Logprob:
    """One token's probability at one position, of the model's own distribution (before any sampling parameter).

    Attributes:
        logprob: natural logarithm of the probability.
        rank: 1 for the most probable token; tokens of equal probability share a rank.
        decoded_token: the token's text, None without a tokenizer.
    """

    logprob: float
    rank: int
    decoded_token: str | None = None


@dataclass(frozen=True, kw_only=True)
class CompletionOutput:
    """One completion of a prompt, whole or as far as it has come.

    Attributes:
        index: which of the request's `n` completions.
        text: generated text, cut before the stop string.
        token_ids: generated tokens, with the token that ended them.
        cumulative_logprob: sum of the chosen tokens' logprobs; None where logprobs were not asked for.
        logprobs: for each token the chosen and the top alternatives by token id; None where not asked for.
        finish_reason: why it ended; None while it goes on.
        stop_reason: the stop string or the stop token id that ended it; None for EOS and for the limit; for an
            abort, what went wrong.
    """

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    logprobs: list[dict[int, Logprob]] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None

    @property
    def finished(self) -> bool:
        """Whether no more tokens will come."""
        return self.finish_reason is not None


@dataclass(frozen=True, kw_only=True)
class RequestMetrics:
    """When things happened to a request, in seconds.

    Attributes:
        arrival_time: clock reading (`time.monotonic`) when the request was taken in.
        time_in_queue: from arrival to the first prefill.
        time_to_first_token: from arrival; None before it.
        time_per_output_token: mean time between tokens after the first; None before the second.
        total_time: from arrival to the end, or to now.
        device_tokens, host_tokens: tokens by the side on which their attention was computed.
        time_per_device_token, time_per_host_token: mean time between such a token and the one before it; None where
            there was none, first tokens of a request not counted.
        evictions, landings: times its KV moved to the host, and back to the device.
        preemptions: times its KV was dropped and computed again.
    """

    arrival_time: float
    time_in_queue: float | None = None
    time_to_first_token: float | None = None
    time_per_output_token: float | None = None
    total_time: float | None = None
    device_tokens: int = 0
    host_tokens: int = 0
    time_per_device_token: float | None = None
    time_per_host_token: float | None = None
    evictions: int = 0
    landings: int = 0
    preemptions: int = 0


@dataclass(frozen=True, kw_only=True)
class RequestOutput:
    """A request and its completions.

    Attributes:
        request_id: unique within the engine.
        prompt: the prompt's text, None if it was given as token ids.
        prompt_token_ids: the prompt's tokens.
        outputs: one completion for each of `n`, in order.
        finished: whether all completions have ended.
        metrics: timings.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
    metrics: RequestMetrics | None = None
