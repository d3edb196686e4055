"""Following a machine: what each term's times must be multiplied by, learnt from what iterations took.

An iteration's predicted time is a sum over the terms of its longest chain, so the logarithm of measured over predicted
is, for small errors, the mean of the errors of the terms' logarithms, weighted by their shares of the chain. A Kalman
filter takes that for its measurement: an error goes to the terms that can explain it, in the shares in which they can,
and iterations of other compositions tell apart what one alone cannot. Device and host busy times are measured likewise
where somebody measures them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .prediction import Prediction, Terms

TERMS = range(len(Terms._fields))


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What an iteration took.

    Attributes:
        iteration_s: from its start to the next one's.
        host_busy_s, device_busy_s: seconds in which either was occupied; None where nobody measured it.
    """

    iteration_s: float
    host_busy_s: float | None = None
    device_busy_s: float | None = None

    def __post_init__(self) -> None:
        for name in ("iteration_s", "host_busy_s", "device_busy_s"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ValueError(f"measured {name} is {value}; finite numbers of 0 and more are allowed")
        if self.iteration_s == 0:
            raise ValueError("measured iteration_s is 0; an iteration takes time")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """How much is believed of whom, as standard deviations of logarithms.

    Attributes:
        profile: of the profile's times, at first.
        drift: of what a term's times change by from one iteration to the next.
        noise: of a measured time.
        outlier: deviations beyond which a measurement is cut off.
        patience: such measurements in a row, to the same side, that are believed after all: the machine has changed.
    """

    profile: float = 0.4
    drift: float = 0.01
    noise: float = 0.1
    outlier: float = 3.0
    patience: int = 3


class Correction:
    """The factors of the terms and how certain they are.

    Args:
        trust: how much is believed of whom.
    """

    def __init__(self, trust: Trust | None = None) -> None:
        self._trust = Trust() if trust is None else trust
        self._logs = [0.0 for _ in TERMS]
        doubt = self._trust.profile**2
        self._covariance = [[doubt if i == j else 0.0 for j in TERMS] for i in TERMS]
        self._surprises: dict[str, list[float]] = {"device": [], "host": [], "iteration": []}

    @property
    def factors(self) -> Terms:
        """What the profile's times are to be multiplied by, by term."""
        return Terms(*map(math.exp, self._logs))

    def update(self, prediction: Prediction, measured: Measured) -> None:
        """Learn from an iteration. The prediction may have been made with earlier factors than the present ones."""
        self._drift()
        if measured.device_busy_s:
            self._learn("device", self._now(prediction.device, prediction), measured.device_busy_s)
        if measured.host_busy_s:
            self._learn("host", self._now(prediction.host, prediction), measured.host_busy_s)
        # Which chain is the longest may be another one by now.
        chains = (prediction.critical, prediction.device, prediction.host)
        self._learn("iteration", max((self._now(chain, prediction) for chain in chains), key=sum), measured.iteration_s)

    def _now(self, seconds: Terms, prediction: Prediction) -> Terms:
        then = zip(seconds, self.factors, prediction.factors, strict=True)
        return Terms(*(time * now / before for time, now, before in then))

    def _drift(self) -> None:
        covariance, most = self._covariance, self._trust.profile**2
        for i in TERMS:
            covariance[i][i] += self._trust.drift**2
            if covariance[i][i] > most:
                self._scale(i, math.sqrt(most / covariance[i][i]))

    def _scale(self, term: int, factor: float) -> None:
        for other in TERMS:
            self._covariance[term][other] *= factor
            self._covariance[other][term] *= factor

    def _learn(self, what: str, seconds: Terms, measured: float) -> None:
        predicted, trust = seconds.total, self._trust
        if predicted <= 0:
            return
        shares = [time / predicted for time in seconds]
        error = math.log(measured / predicted)
        reached = [sum(row[j] * shares[j] for j in TERMS) for row in self._covariance]
        variance = sum(shares[i] * reached[i] for i in TERMS) + trust.noise**2
        most = trust.outlier * math.sqrt(variance)
        believed = self._believed(what, error, most)
        if believed is not None:
            error = believed
            for i in TERMS:
                self._covariance[i][i] += shares[i] * trust.profile**2
            reached = [sum(row[j] * shares[j] for j in TERMS) for row in self._covariance]
            variance = sum(shares[i] * reached[i] for i in TERMS) + trust.noise**2
        else:
            error = max(-most, min(most, error))
        for i in TERMS:
            self._logs[i] += reached[i] / variance * error
            for j in TERMS:
                self._covariance[i][j] -= reached[i] * reached[j] / variance

    def _believed(self, what: str, error: float, most: float) -> float | None:
        """Return the least of the last errors where so many were beyond `most` to the same side; None otherwise."""
        before = self._surprises[what]
        if abs(error) <= most:
            before.clear()
            return None
        if before and before[-1] * error < 0:
            before.clear()
        before.append(error)
        if len(before) < self._trust.patience:
            return None
        least = min(before, key=abs)
        before.clear()
        return least
