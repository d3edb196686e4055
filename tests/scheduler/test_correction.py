"""Corrections learnt from a machine that is not the profile's: a second cost model plays the machine."""

import math
import random
from dataclasses import replace

import pytest

from apex_jax.scheduler import CostModel, DeviceSpec, HostSpec, Load, ModelShape, Terms, describe
from apex_jax.scheduler.cost_model.component_times import Costs
from apex_jax.scheduler.cost_model.correction import Measured
from apex_jax.scheduler.strategies.steady import steady

from .machines import machine

SHAPE = ModelShape(
    name="m",
    num_layers=16,
    hidden_size=2048,
    num_heads=32,
    num_kv_heads=8,
    head_dim=64,
    intermediate_size=8192,
    vocab_size=128256,
)
PROFILE = describe(
    device=DeviceSpec(
        name="d",
        memory_gb=16,
        weights_gb_per_s=230,
        attention_gb_per_s=230,
        tflops=20,
        overlap=0.8,
        iteration_us=500,
        link_gb_per_s=12,
        link_us=20,
    ),
    host=HostSpec(name="h", cores=8, memory_gb=64, attention_gb_per_s=40, job_us=20),
    model=SHAPE,
)
STRATEGIES = ("device_only", "layer_sync", "asymmetric_pipelining", "async_overlap")
NONE = Terms(1, 1, 1, 1, 1, 1)


class Machine:
    """Iterations of all strategies, rows, lengths and prompts on a machine `factors` away from the profile."""

    def __init__(self, factors, seed, *, noise=0.02, strategies=STRATEGIES):
        self.rng = random.Random(seed)
        self.model = CostModel(PROFILE)
        self.true = CostModel(PROFILE)
        self.true.costs = Costs(PROFILE, factors)
        self.noise = noise
        self.strategies = strategies

    def situation(self):
        rng = self.rng
        strategy, rows, prompt = rng.choice(self.strategies), rng.randint(1, 60), rng.choice([0, 0, 0, 512])
        load = Load(
            device_rows=rows,
            device_kv_tokens=rows * rng.randint(100, 1500),
            prefill_tokens=prompt,
            prefill_pairs=prompt * rng.randint(256, 2000),
        )
        count = rng.randint(1, 60)
        lanes = {
            "device_only": (),
            "layer_sync": (count,),
            "asymmetric_pipelining": ((count + 1) // 2, count),
            "async_overlap": (count,) * 4,
        }
        return strategy, load, lanes[strategy], rng.randint(100, 1500)

    def measure(self, situation):
        true = steady(self.true.costs, *situation)
        values = (true.iteration_s, true.host_busy_s, true.device_busy_s)
        return Measured(
            **dict(
                zip(
                    ("iteration_s", "host_busy_s", "device_busy_s"),
                    (value * math.exp(self.rng.gauss(0, self.noise)) for value in values),
                    strict=True,
                )
            )
        )

    def run(self, iterations, change=lambda measured: measured):
        for _ in range(iterations):
            situation = self.situation()
            self.model.observe(steady(self.model.costs, *situation), change(self.measure(situation)))

    def errors(self):
        found = []
        for _ in range(100):
            situation = self.situation()
            true = steady(self.true.costs, *situation).iteration_s
            found.append(abs(steady(self.model.costs, *situation).iteration_s / true - 1))
        return sorted(found)


@pytest.mark.parametrize("factor", [3.0, 1 / 3])
@pytest.mark.parametrize("term", [*Terms._fields, "all"])
def test_a_profile_wrong_by_three_is_corrected_within_20_iterations(term, factor):
    factors = Terms(*[factor] * 6) if term == "all" else NONE._replace(**{term: factor})
    for seed in range(5):
        machine = Machine(factors, seed)
        machine.run(20)
        errors = machine.errors()
        assert errors[50] < 0.05
        assert errors[90] < 0.15


@pytest.mark.parametrize("factor", [3.0, 1 / 3])
def test_iteration_times_alone_do_for_the_device(factor):
    factors = Terms(factor, factor, factor, 1.0, 1.0, factor)
    for seed in range(5):
        machine = Machine(factors, seed, strategies=("device_only",))
        machine.run(20, lambda measured: Measured(iteration_s=measured.iteration_s))
        assert machine.errors()[50] < 0.05


@pytest.mark.parametrize("factor", [3.0, 1 / 3])
def test_a_machine_that_changes_later_is_followed(factor):
    machine = Machine(NONE, 0)
    machine.run(300)
    machine.true.costs = Costs(PROFILE, Terms(*[factor] * 6))
    machine.run(20)
    assert machine.errors()[50] < 0.05


def test_outliers_are_not_followed():
    """Every tenth iteration takes ten times as long, as one does that compiles or collects garbage."""
    machine = Machine(NONE, 0)
    machine.run(50)
    turn = iter(range(1000))
    machine.run(
        100, lambda measured: replace(measured, iteration_s=measured.iteration_s * (10 if next(turn) % 10 == 0 else 1))
    )
    assert machine.errors()[90] < 0.05


def test_noise_is_averaged():
    machine = Machine(NONE, 0, noise=0.1)
    machine.run(200)
    assert machine.errors()[50] < 0.05


def test_predictions_that_are_several_iterations_old_count_for_what_they_were():
    """The engine runs ahead: an iteration's prediction was made before the corrections of those before it."""
    machine = Machine(NONE._replace(linear=3.0), 0, strategies=("device_only",))
    under_way = []
    for _ in range(20):
        situation = machine.situation()
        under_way.append((steady(machine.model.costs, *situation), machine.measure(situation)))
        if len(under_way) > 3:
            machine.model.observe(*under_way.pop(0))
    assert machine.model.factors.linear == pytest.approx(3.0, rel=0.1)


def test_what_did_not_happen_is_not_corrected():
    """Iterations of the device alone say nothing of the host."""
    model = CostModel(machine(layers=4, device_token=0.01))
    prediction = steady(model.costs, "device_only", Load(device_rows=4, device_kv_tokens=100))
    for _ in range(20):
        model.observe(prediction, Measured(iteration_s=3 * prediction.iteration_s))
    assert model.factors.host_attention == model.factors.transfer == model.factors.prefill_attention == 1
    assert steady(model.costs, "device_only", Load(device_rows=4, device_kv_tokens=100)).iteration_s == pytest.approx(
        3 * prediction.iteration_s, rel=0.02
    )


def test_the_last_iterations_are_kept():
    model = CostModel(machine())
    prediction, measured = steady(model.costs, "device_only", Load(device_rows=1)), Measured(iteration_s=4.0)
    for _ in range(100):
        model.observe(prediction, measured)
    assert len(model.recent) == 64
    assert model.recent[-1] == (prediction, measured)


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"iteration_s": 0.0}, "iteration_s is 0"),
        ({"iteration_s": -1.0}, "iteration_s is -1"),
        ({"iteration_s": math.nan}, "iteration_s is nan"),
        ({"iteration_s": 1.0, "host_busy_s": math.inf}, "host_busy_s is inf"),
        ({"iteration_s": 1.0, "device_busy_s": -2.0}, "device_busy_s is -2"),
    ],
)
def test_measurements_refused(values, match):
    with pytest.raises(ValueError, match=match):
        Measured(**values)
