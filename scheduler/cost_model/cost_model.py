"""The cost model: what plans take on a machine, corrected by what iterations took."""

from __future__ import annotations

from collections import deque

from ..plan import Plan
from .component_times import Costs
from .correction import Correction, Measured
from .critical_path import Clock, walk
from .prediction import Load, Prediction, Terms
from .profile import Profile

RECENT = 64
"""Iterations whose prediction and measurement are kept."""


class CostModel:
    """Predicts iterations from a profile and follows the machine.

    Args:
        profile: the machine's times with the model.

    Attributes:
        profile: the same.
        costs: its times as they are corrected now.
        recent: the last iterations' predictions and measurements.
    """

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self.costs = Costs(profile)
        self.recent: deque[tuple[Prediction, Measured]] = deque(maxlen=RECENT)
        self._correction = Correction()

    @property
    def factors(self) -> Terms:
        """What the profile's times are multiplied by, by term."""
        return self.costs.factors

    def predict(self, plan: Plan, clock: Clock | None = None) -> tuple[Prediction, Clock]:
        """Return what a plan takes and what the next one finds under way.

        Args:
            plan: the plan.
            clock: what this one finds under way, as the prediction of the plan before it returned.
        """
        return self.predict_load(plan.strategy, Load.of(plan, self.profile.page_size), clock)

    def predict_load(self, strategy: str, load: Load, clock: Clock | None = None) -> tuple[Prediction, Clock]:
        """Return what `predict` does for a plan in counts."""
        walked = walk(self.costs, load, clock)
        layers = self.profile.num_layers
        arriving = [cohort for cohort in load.cohorts if cohort.last == layers]
        slowest = max((-(-(layers + 1) // (c.last - c.first + 1)) for c in load.cohorts), default=0)
        prediction = Prediction(
            strategy=strategy,
            iteration_s=walked.iteration_s,
            device=walked.device,
            host=walked.host,
            critical=walked.critical,
            device_tokens=load.device_tokens,
            host_tokens=sum(cohort.rows for cohort in arriving),
            device_token_s=walked.iteration_s if load.device_tokens else None,
            host_token_s=walked.iteration_s * slowest if load.cohorts else None,
            extrapolated=not self.costs.covers(load),
            factors=self.costs.factors,
        )
        return prediction, walked.clock

    def observe(self, prediction: Prediction, measured: Measured) -> None:
        """Correct the terms that an iteration's prediction consisted of by what the iteration took.

        A machine that slows down, or a profile that is not this machine's, is followed within a few iterations; single
        outliers are not.
        """
        self.recent.append((prediction, measured))
        self._correction.update(prediction, measured)
        self.costs = Costs(self.profile, self._correction.factors)


class Follower:
    """Predicts each plan of a run in its turn and compares it with what it took.

    Args:
        model: predicts, and is corrected.
    """

    def __init__(self, model: CostModel) -> None:
        self.model = model
        self._clock: Clock | None = None
        self._expected: dict[int, Prediction] = {}

    def expect(self, plan: Plan) -> None:
        """Predict a plan that is about to run after those before it."""
        self._expected[plan.number], self._clock = self.model.predict(plan, self._clock)

    def compare(self, plan: Plan, measured: Measured | None) -> None:
        """Correct the model by what a plan took; None where that says nothing, as when programs were compiled."""
        prediction = self._expected.pop(plan.number, None)
        # A plan that only begins to move pages takes the device no time that could be compared.
        if prediction is not None and prediction.iteration_s > 0 and measured is not None:
            self.model.observe(prediction, measured)

    def forget(self) -> None:
        """Drop what is expected and under way, after a run was cut short or has ended."""
        self._clock = None
        self._expected.clear()
