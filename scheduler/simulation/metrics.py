"""What a simulation observes on its way, and the numbers that people read."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from ..cost_model.prediction import Prediction
from .request_pool import SimRequest

_STEP = math.log(1.01)


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """A workload that has been served in virtual time.

    Attributes:
        requests, prompt_tokens, output_tokens: what was served.
        seconds: virtual time from the start to the last token.
        iterations: of the device.
        requests_per_s, tokens_per_s: requests and output tokens a second.
        tpot_device_ms, tpot_host_ms: mean time per token of requests while their KV is on that side; None where no
            token was made there.
        tpot_device_p99_ms, tpot_host_p99_ms: the time that 99 % of those tokens do not exceed, within 1 %.
        device_tokens, host_tokens: output tokens by side; those of prompts count for the device.
        ttft_s: mean time from arrival to the first token.
        device_busy, host_busy: fractions of the time.
        iterations_by_strategy: how many each strategy had.
        evictions, fetches, preemptions: how often requests moved to the host, back, or were computed again.
        peak_host_requests: most requests that were on the host at once.
        extrapolated: fraction of the time in iterations that the profile does not cover.
    """

    requests: int
    prompt_tokens: int
    output_tokens: int
    seconds: float
    iterations: int
    requests_per_s: float
    tokens_per_s: float
    tpot_device_ms: float | None
    tpot_host_ms: float | None
    tpot_device_p99_ms: float | None
    tpot_host_p99_ms: float | None
    device_tokens: int
    host_tokens: int
    ttft_s: float
    device_busy: float
    host_busy: float
    iterations_by_strategy: dict[str, int]
    evictions: int
    fetches: int
    preemptions: int
    peak_host_requests: int
    extrapolated: float


class _TokenTimes:
    """Times per token of one side, counted in classes of 1 %."""

    def __init__(self) -> None:
        self.tokens = 0.0
        self.seconds = 0.0
        self._classes: Counter[int] = Counter()

    def add(self, seconds: float, tokens: float) -> None:
        self.tokens += tokens
        self.seconds += seconds * tokens
        self._classes[round(math.log(seconds) / _STEP)] += tokens  # type: ignore[assignment]

    @property
    def mean_ms(self) -> float | None:
        return 1e3 * self.seconds / self.tokens if self.tokens else None

    def quantile_ms(self, fraction: float) -> float | None:
        below = 0.0
        for index in sorted(self._classes):
            below += self._classes[index]
            if below >= fraction * self.tokens:
                return 1e3 * math.exp(index * _STEP)
        return None


class Measures:
    """Sums over a simulation's iterations."""

    def __init__(self) -> None:
        self._iterations: Counter[str] = Counter()
        self._device = _TokenTimes()
        self._host = _TokenTimes()
        self._device_busy = self._host_busy = self._extrapolated = self._waited = 0.0
        self._ended = self._prompts = self._outputs = self._peak = 0

    def iterations(
        self,
        prediction: Prediction,
        *,
        seconds: float,
        steps: int,
        device_rows: int,
        host_rows: int,
        host_tokens: float,
    ) -> None:
        """Record `steps` iterations of `seconds` in which each of `host_rows` requests makes `host_tokens`."""
        self._iterations[prediction.strategy] += steps
        self._device_busy += steps * prediction.device.total
        self._host_busy += steps * prediction.host.total
        self._extrapolated += steps * seconds * prediction.extrapolated
        self._peak = max(self._peak, host_rows)
        if device_rows:
            self._device.add(seconds, device_rows * steps)
        if host_rows and host_tokens:
            self._host.add(seconds / host_tokens, host_rows * host_tokens * steps)

    def first_token(self, request: SimRequest, now: float) -> None:
        """Record that a request's prompt has been computed; only the first time counts."""
        if request.first_token_s < 0:
            request.first_token_s = now
            self._waited += now - request.arrival_s

    def ended(self, request: SimRequest) -> None:
        """Record that a request has all its tokens."""
        self._ended += 1
        self._prompts += request.prompt
        self._outputs += request.output

    def result(self, seconds: float, *, evictions: int, fetches: int, preemptions: int) -> Simulated:
        """Return the numbers of a simulation that took so many seconds."""
        host_tokens = min(round(self._host.tokens), self._outputs)
        return Simulated(
            requests=self._ended,
            prompt_tokens=self._prompts,
            output_tokens=self._outputs,
            seconds=seconds,
            iterations=sum(self._iterations.values()),
            requests_per_s=self._ended / seconds,
            tokens_per_s=self._outputs / seconds,
            tpot_device_ms=self._device.mean_ms,
            tpot_host_ms=self._host.mean_ms,
            tpot_device_p99_ms=self._device.quantile_ms(0.99),
            tpot_host_p99_ms=self._host.quantile_ms(0.99),
            device_tokens=self._outputs - host_tokens,
            host_tokens=host_tokens,
            ttft_s=self._waited / self._ended,
            device_busy=self._device_busy / seconds,
            host_busy=self._host_busy / seconds,
            iterations_by_strategy=dict(self._iterations),
            evictions=evictions,
            fetches=fetches,
            preemptions=preemptions,
            peak_host_requests=self._peak,
            extrapolated=self._extrapolated / seconds,
        )
