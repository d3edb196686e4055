"""Traces of a device and a host that take known times, walked through plan by plan."""

from dataclasses import dataclass, field

from apex_jax.scheduler.plan import Plan
from apex_jax.tracing.recorder import ITERATION, Recorder
from apex_jax.tracing.steady_plans import steady_plan

LAYER = 660_000
"""Nanoseconds of a boundary's linear layers, whatever rides."""
ATTENTION = 35_000
"""Of the device rows' attention in one layer."""
HOP = 30_000
"""Of a transfer."""
PLAN, DISPATCH, UPDATE = 150_000, 40_000, 200_000
"""Of Python: for a plan, for a stage, for the tokens of an iteration."""


@dataclass
class Walk:
    """Clocks in nanoseconds, and when each cohort's last result is back on the device."""

    host_row: int
    recorder: Recorder = field(default_factory=lambda: Recorder(label="simulated"))
    python: int = 0
    device: int = 0
    host: int = 0
    ready: dict[int, int] = field(default_factory=dict)

    def run(self, plan: Plan) -> None:
        record = self.recorder.span
        record("python", "plan", self.python, self.python + PLAN, iteration=plan.number)
        self.python += PLAN
        begin = max(self.device, self.python + DISPATCH)
        self.device = begin
        record("python", "dispatch", self.python, self.python + DISPATCH * len(plan.stages), iteration=plan.number)
        self.python += DISPATCH * len(plan.stages)
        rows = {cohort.id: len(cohort.rows) for cohort in plan.cohorts}
        for stage in plan.stages:
            riding = rows.get(stage.cohort, 0) + (len(plan.decode) if stage.device else 0)
            where = {"layer": stage.boundary, "rows": riding}
            if stage.cohort is not None:
                where["cohort"] = stage.cohort
                if stage.boundary > 0:
                    self.wait(stage.cohort, stage.boundary - 1)
            self.on_device("layer" if stage.boundary < plan.num_layers else "head", LAYER, **where)
            if stage.boundary < plan.num_layers:
                if stage.cohort is not None:
                    self.on_host(stage.cohort, stage.boundary, rows[stage.cohort])
                if stage.device:
                    self.on_device("attention", ATTENTION, layer=stage.boundary, rows=len(plan.decode))
        record("device", ITERATION, begin, self.device, iteration=plan.number, strategy=plan.strategy)
        # Python is one iteration ahead: it reads the tokens of the iteration before.
        if begin > self.python:
            record("waits", "python waits", self.python, begin, iteration=plan.number)
            self.python = begin
        record("python", "update", self.python, self.python + UPDATE, iteration=plan.number)
        self.python += UPDATE

    def on_device(self, name, duration, **where):
        self.recorder.span("device", name, self.device, self.device + duration, **where)
        self.device += duration

    def wait(self, cohort, layer):
        ready = self.ready.pop(cohort, 0)
        if ready > self.device:
            self.recorder.span("waits", "device waits", self.device, ready, cohort=cohort, layer=layer)
            self.device = ready

    def on_host(self, cohort, layer, rows):
        record, where = self.recorder.span, {"layer": layer, "cohort": cohort, "rows": rows}
        arrives = self.device + HOP
        record("transfers", "to host", self.device, arrives, **where)
        if arrives > self.host:
            record("waits", "host waits", self.host, arrives)
        begin = max(self.host, arrives)
        self.host = begin + rows * self.host_row
        record("host", "attention", begin, self.host, **where)
        record("transfers", "to device", self.host, self.host + HOP, **where)
        self.ready[cohort] = self.host + HOP


def synthetic(strategy, *, layers=16, device_rows=8, host_rows=0, cohorts=2, iterations=8, host_row=20_000, first=0):
    """Return the recorder of a walk through a steady run; `host_row` is the nanoseconds of a host row's layer."""
    walk = Walk(host_row=host_row)
    for number in range(first, first + iterations):
        plan = steady_plan(
            strategy,
            num_layers=layers,
            device_rows=device_rows,
            host_rows=host_rows,
            num_cohorts=cohorts,
            number=number,
        )
        walk.run(plan)
    return walk.recorder
