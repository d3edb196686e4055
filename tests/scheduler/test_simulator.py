"""The simulator against numbers worked out by hand, and against the scheduler's own plans walked one by one."""

import pytest

from apex_jax.scheduler import CostModel, FixedPolicy, Request, Scheduler
from apex_jax.scheduler.cost_model.catalogue import Catalogue
from apex_jax.scheduler.experiment import Experiment
from apex_jax.scheduler.simulation.simulator import simulate
from apex_jax.scheduler.simulation.virtual_engine import host_turn
from apex_jax.scheduler.simulation.workload import Job, equal

from .machines import capacity, machine

ROOMY = capacity(1000)
ALONE = FixedPolicy(strategy="device_only")
KNOWN = Catalogue.built_in()


def hosted(strategy, cohorts=17):
    return FixedPolicy(strategy=strategy, num_cohorts=cohorts, max_host_requests=10_000)


def walked(jobs, limits, model, policy):
    """Return the seconds and iterations of the scheduler's plans, each walked pass by pass."""
    scheduler = Scheduler(limits, num_layers=model.profile.num_layers, policy=policy)
    for index, job in enumerate(jobs):
        scheduler.add(Request(id=index, prompt=(0,) * job.prompt, max_tokens=job.output))
    now, clock, iterations = 0.0, None, 0
    while scheduler.has_unfinished:
        plan = scheduler.schedule()
        assert plan is not None
        prediction, clock = model.predict(plan, clock)
        now, iterations = now + prediction.iteration_s, iterations + 1
        for request, _ in scheduler.update(plan, [0] * len(plan.sampling_requests)):
            if len(request.output) == request.max_tokens:
                scheduler.finish(request.id)
        for fetch in plan.fetches:
            scheduler.fetch_arrived(fetch.request_id)
    return now, iterations


class TestByHand:
    def test_one_request(self):
        """4 layers of 1 s: a prefill and 9 decode steps, each 4 s."""
        result = simulate(equal(prompt=8, output=10, requests=1), ROOMY, CostModel(machine()), ALONE)
        assert (result.seconds, result.iterations) == (pytest.approx(40.0), 10)
        assert result.tpot_device_ms == pytest.approx(4000.0)
        assert result.tpot_host_ms is None
        assert result.ttft_s == pytest.approx(4.0)
        assert result.tokens_per_s == pytest.approx(10 / 40)

    def test_attention_grows_with_the_context(self):
        """0.1 s a token: 20 iterations of 4 s; the 19 decode steps attend to 9, 10, ... 27 tokens."""
        model = CostModel(machine(device_token=0.1))
        result = simulate(equal(prompt=8, output=20, requests=1), ROOMY, model, ALONE)
        assert result.seconds == pytest.approx(20 * 4 + 0.1 * sum(range(9, 28)))

    def test_prompts_are_cut_into_chunks(self):
        """100 tokens in chunks of 32: 4 iterations, then 4 decode steps."""
        limits = capacity(100, prompt=32)
        result = simulate(equal(prompt=100, output=5, requests=1), limits, CostModel(machine()), ALONE)
        assert result.iterations == 8

    def test_prompts_alone(self):
        """The first request rests for an iteration, in which the second one's prompt is computed."""
        jobs = [Job(arrival_s=0, prompt=16, output=20), Job(arrival_s=1, prompt=16, output=5)]
        together = simulate(jobs, ROOMY, CostModel(machine()), ALONE)
        apart = simulate(jobs, ROOMY, CostModel(machine()), ALONE, prefill_alone=True)
        assert (together.iterations, apart.iterations) == (20, 21)

    def test_arrivals_are_waited_for(self):
        jobs = [Job(arrival_s=0, prompt=1, output=2), Job(arrival_s=100, prompt=1, output=2)]
        result = simulate(jobs, ROOMY, CostModel(machine()), ALONE)
        assert result.seconds == pytest.approx(108.0)

    def test_a_long_step_ends_when_somebody_arrives(self):
        """The second request comes after 30.5 s; its prompt is computed in the iteration that begins at 32 s."""
        jobs = [Job(arrival_s=0, prompt=1, output=50), Job(arrival_s=30.5, prompt=1, output=1)]
        result = simulate(jobs, ROOMY, CostModel(machine()), ALONE)
        assert result.seconds == pytest.approx(200.0)
        assert result.ttft_s == pytest.approx((4 + 36 - 30.5) / 2)

    def test_requests_wait_for_pages(self):
        """Two pages: one request of 16 + 4 tokens at a time, a prefill and 3 decode steps each."""
        limits = capacity(2)
        result = simulate(equal(prompt=16, output=4, requests=3), limits, CostModel(machine()), ALONE)
        assert result.iterations == 12
        assert result.preemptions == 0

    def test_the_youngest_is_computed_again(self):
        """Four pages hold two prompts of 16 and the page left for the first; the second must give its own way."""
        limits = capacity(4)
        result = simulate(equal(prompt=16, output=40, requests=2), limits, CostModel(machine()), ALONE)
        assert result.preemptions == 1
        assert result.output_tokens == 80


class TestHostTurn:
    def test_even_spacing(self):
        """9 boundaries, 3 lanes: a departure every 3 iterations, all rows under way, a token in 9 iterations."""
        turn = host_turn("async_overlap", (4, 4, 4), 12, 8, device=True)
        assert (turn.lanes, turn.pace) == ((4, 4, 4), pytest.approx(1 / 9))

    def test_spacing_that_does_not_divide(self):
        """9 boundaries, 2 lanes: 4.5 iterations apart, so a token takes 9 all the same."""
        turn = host_turn("async_overlap", (10, 10), 20, 8, device=True)
        assert (turn.lanes, turn.pace) == ((10, 10), pytest.approx(1 / 9))

    def test_no_more_cohorts_than_boundaries(self):
        turn = host_turn("async_overlap", (2,) * 10, 20, 3, device=True)
        assert (turn.lanes, turn.pace) == ((2, 2, 2, 2), pytest.approx(8 / 20 / 4))

    def test_more_rows_than_lanes_take_turns(self):
        turn = host_turn("asymmetric_pipelining", (3, 5), 16, 8, device=True)
        assert (turn.lanes, turn.pace) == ((3, 5), 0.5)

    def test_nothing_moves_beside_the_device_alone(self):
        assert host_turn("device_only", (), 7, 8, device=True).pace == 0

    def test_without_a_device_all_go_through(self):
        assert host_turn("device_only", (), 7, 8, device=False) == ("layer_sync", (7,), 1.0)
        assert host_turn("async_overlap", (4, 4), 8, 8, device=False) == ("asymmetric_pipelining", (4, 4), 1.0)


class TestAgainstPlans:
    """The same workload through the scheduler, plan by plan, priced by walking every pass."""

    @pytest.mark.parametrize("strategy", ["device_only", "async_overlap"])
    @pytest.mark.parametrize(("prompt", "output"), [(40, 120), (200, 60)])
    def test_same_time(self, strategy, prompt, output):
        experiment = Experiment(
            device=KNOWN.device("t4"),
            host=KNOWN.host("g4dn.4xlarge"),
            model=KNOWN.model("llama-3.2-1b"),
            device_kv_tokens=1600,
            host_kv_gb=1.0,
            max_prefill_tokens=256,
        )
        jobs = equal(prompt=prompt, output=output, requests=60)
        policy = ALONE if strategy == "device_only" else hosted(strategy)
        result = experiment.run(jobs, policy=policy)
        seconds, iterations = walked(jobs, experiment.capacity, experiment.cost_model, policy)
        exact = strategy == "device_only"
        assert result.seconds == pytest.approx(seconds, rel=1e-9 if exact else 0.03)
        assert iterations == result.iterations or not exact
