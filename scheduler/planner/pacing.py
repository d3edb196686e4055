"""The seconds of iterations that repeat, by counts; see `strategies.steady.Pace`."""

from __future__ import annotations

from ..cost_model.component_times import Costs
from ..cost_model.prediction import Load
from ..strategies import named
from ..strategies.steady import Pace


class Pacing:
    """What iterations take, by strategy.

    Args:
        costs: times of the parts.
    """

    def __init__(self, costs: Costs) -> None:
        self._costs = costs

    def seconds(
        self,
        strategy: str,
        rows: int,
        kv_tokens: float,
        host_rows: int = 0,
        row_tokens: float = 0.0,
        prompt: tuple[int, float] = (0, 0.0),
        share: float = 0.5,
        cohorts: int = 0,
    ) -> tuple[float, float]:
        """Return what an iteration takes, and for how much of it the host is busy."""
        return self.beside(rows, kv_tokens, prompt).seconds(strategy, host_rows, row_tokens, share, cohorts)

    def beside(self, rows: int, kv_tokens: float, prompt: tuple[int, float] = (0, 0.0)) -> DevicePace:
        """Return the device's side of an iteration, to which host rows can be added in turn; arguments as above."""
        load = Load(device_rows=rows, device_kv_tokens=kv_tokens, prefill_tokens=prompt[0], prefill_pairs=prompt[1])
        return DevicePace(self._costs, load)


class DevicePace(Pace):
    """The device's side of an iteration that repeats."""

    def __init__(self, costs: Costs, load: Load) -> None:
        super().__init__(costs, load)
        self._num_layers = costs.num_layers

    def seconds(  # type: ignore[override]
        self, strategy: str, host_rows: int, row_tokens: float, share: float = 0.5, cohorts: int = 0
    ) -> tuple[float, float]:
        """Return what `Pacing.seconds` does."""
        chosen = named(strategy)
        most = chosen.most_cohorts(self._num_layers)
        lanes = chosen.spread(host_rows, min(cohorts or most, most), share) if host_rows and most else ()
        return super().seconds(strategy, lanes, row_tokens)
