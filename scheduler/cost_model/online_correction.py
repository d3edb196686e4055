"""Holds plans' predictions until their measurements come, and teaches the cost model the difference."""

from __future__ import annotations

from ..plan import Plan
from .correction import Measured
from .cost_model import CostModel
from .critical_path import Clock
from .prediction import Prediction


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
