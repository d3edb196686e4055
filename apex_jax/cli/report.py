"""What a run did, in numbers and in words."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from .serving import Served

if TYPE_CHECKING:
    from ..llm import LLM


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """Totals of one run of requests.

    Attributes:
        requests: prompts served.
        prompt_tokens, output_tokens: tokens taken in and generated.
        seconds: from the first request's arrival to the last one's end, model loading not included.
        load_seconds: reading the weights and preparing the engine.
        time_to_first_token: median over the requests, in seconds; includes compilation where a shape is new.
        preemptions: times that a request lost its cache pages and was computed again.
        device: where it ran, such as "cpu:0".
        device_kind: the device's own name.
        attention: decode attention in use.
        dtype: of weights and KV cache.
        device_kv_tokens, host_kv_tokens: sizes of the KV caches.
        strategy: as it was asked for.
        device_tokens, host_tokens: output tokens by the side on which their attention was computed.
        evictions, landings: times a request's KV moved to the host, and back.
        device_utilisation, host_utilisation, wait_seconds, host_seconds, move_seconds: as in `EngineStats`, since the
            engine was made.
    """

    requests: int
    prompt_tokens: int
    output_tokens: int
    seconds: float
    load_seconds: float
    time_to_first_token: float | None
    preemptions: int
    device: str
    device_kind: str
    attention: str
    dtype: str
    device_kv_tokens: int
    host_kv_tokens: int
    strategy: str
    device_tokens: int
    host_tokens: int
    evictions: int
    landings: int
    device_utilisation: float | None
    host_utilisation: float | None
    wait_seconds: float
    host_seconds: float
    move_seconds: float

    @property
    def tokens_per_s(self) -> float:
        """Generated tokens per second over the whole run."""
        return self.output_tokens / self.seconds if self.seconds > 0 else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Return everything for `--json`."""
        return {**asdict(self), "tokens_per_s": self.tokens_per_s}

    def line(self) -> str:
        """Return one line for a person."""
        parts = [
            counted(self.requests, "request"),
            f"{counted(self.output_tokens, 'token')} in {self.seconds:.2f} s ({self.tokens_per_s:.1f} tokens/s)",
            f"first token after {self.first_token}",
            f"on {self.device}, {self.dtype}, {self.attention} attention",
        ]
        if self.host_kv_tokens:
            parts.append(
                f"{self.strategy}: {self.device_tokens:,} tokens on the device, {self.host_tokens:,} on the host"
            )
        return " · ".join(parts)

    @property
    def first_token(self) -> str:
        """Time to the first token, for a person."""
        return "-" if self.time_to_first_token is None else f"{self.time_to_first_token:.2f} s"


def summarise(llm: LLM, served: Served, *, load_seconds: float) -> RunSummary:
    """Return the totals of a run that has ended.

    Args:
        llm: what ran it.
        served: its results.
        load_seconds: how long it took to make `llm`.
    """
    every = [output.metrics for output in served.outputs if output.metrics is not None]
    times = [metrics.time_to_first_token for metrics in every]
    stats = llm.stats()
    first_token_times = [seconds for seconds in times if seconds is not None]
    return RunSummary(
        requests=len(served.outputs),
        prompt_tokens=sum(len(output.prompt_token_ids) for output in served.outputs),
        output_tokens=sum(len(c.token_ids) for output in served.outputs for c in output.outputs),
        seconds=served.seconds,
        load_seconds=load_seconds,
        time_to_first_token=median(first_token_times) if first_token_times else None,
        preemptions=stats.preemptions,
        device=f"{llm.device.platform}:{llm.device.id}",
        device_kind=llm.device.device_kind,
        attention=llm.attention_name,
        dtype=str(llm.dtype),
        device_kv_tokens=llm.device_kv_tokens,
        host_kv_tokens=llm.host_kv_tokens,
        strategy=llm.strategy,
        device_tokens=sum(metrics.device_tokens for metrics in every),
        host_tokens=sum(metrics.host_tokens for metrics in every),
        evictions=sum(metrics.evictions for metrics in every),
        landings=sum(metrics.landings for metrics in every),
        device_utilisation=stats.device_utilisation,
        host_utilisation=stats.host_utilisation,
        wait_seconds=stats.wait_seconds,
        host_seconds=stats.host_seconds,
        move_seconds=stats.move_seconds,
    )


def counted(number: int, noun: str) -> str:
    """Return `1 token`, `2,000 tokens`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def in_bytes(number: float) -> str:
    """Return a size for a person, in powers of 1,024."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "bytes" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"
