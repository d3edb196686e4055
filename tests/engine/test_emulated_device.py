"""The emulated device's moments worked out by hand and by the cost model, on a clock that only waiting moves."""

import itertools

import jax
import ml_dtypes
import numpy as np
import pytest

import apex_jax.execution.emulated_device
import apex_jax.execution.executor
import apex_jax.execution.operation_queue
from apex_jax import SamplingParams
from apex_jax.engine.engine import Engine
from apex_jax.engine.output_processor import OutputStream
from apex_jax.execution.batch import Buckets, padding_of
from apex_jax.execution.emulated_device import EmulatedDevice, decode_load, device_load
from apex_jax.execution.executor import Executor
from apex_jax.execution.operation_queue import OperationQueue, wait_until
from apex_jax.host_offload import HostJob, HostKVConfig, HostWorker, allocate
from apex_jax.scheduler import (
    AttentionTime,
    Capacity,
    CostModel,
    Curve,
    FixedPolicy,
    ModelShape,
    Padding,
    PrefillChunk,
    Profile,
    ProfileKey,
    Terms,
)
from apex_jax.scheduler.cost_model.component_times import Costs
from apex_jax.tracing.recorder import Recorder
from apex_jax.tracing.steady_plans import steady_plan

LAYERS, PAGE = 3, 16
SHAPE = ModelShape(
    name="tiny",
    num_layers=LAYERS,
    hidden_size=64,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    intermediate_size=128,
    vocab_size=100,
)
CAPACITY = Capacity(
    device_kv_tokens=32 * PAGE,
    host_kv_tokens=40 * PAGE,
    page_size=PAGE,
    max_num_seqs=8,
    max_host_seqs=16,
    max_prefill_tokens=4 * PAGE,
)
BUCKETS = Buckets(capacity=CAPACITY, table_width=8, ragged_attention=True)
MS = 1_000_000


class Clock:
    """Stands for the module `time`."""

    def __init__(self):
        self.now = 1_000_000_000

    def perf_counter_ns(self):
        return self.now

    def sleep(self, seconds):
        # Giving the processor away takes a little too.
        self.now += max(round(seconds * 1e9), 1000)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(apex_jax.execution.operation_queue, "time", clock)
    monkeypatch.setattr(apex_jax.execution.emulated_device, "time", clock)
    return clock


def profile(padding=None, hop=6e-4):
    """Milliseconds that can be added up in the head: a layer takes 1 + rows / 10, a row of attention 0.3."""
    return Profile(
        key=ProfileKey(device="by hand", host="by hand", model="tiny", dtypes="any", software="test"),
        described=True,
        num_layers=LAYERS,
        page_size=PAGE,
        kv_bytes_per_token=1,
        layer=Curve.line(1e-4, start=1e-3),
        head=Curve.line(1e-4, start=2e-3),
        pre_share=0.25,
        device_attention=AttentionTime(rows=Curve.line(3e-4), tokens=Curve.line(3e-5)),
        prefill_attention=Curve.line(3e-5),
        host_attention=AttentionTime(rows=Curve.constant(0.0), tokens=Curve.constant(0.0)),
        hop=Curve.constant(hop),
        boarding=Curve.constant(5e-4),
        migration=Curve.line(3e-5),
        iteration_overhead=7e-4,
        stepwise_overhead=2e-4,
        padding=padding or Padding(),
    )


def make(times=None):
    dtype = np.dtype(ml_dtypes.bfloat16)
    return EmulatedDevice(times or profile(), SHAPE, dtype=dtype, buckets=BUCKETS)


def begin_steps(device, plan):
    """Returns the cohorts' rows by their ids."""
    device.begin(plan)
    return {cohort.id: device.board(cohort) for cohort in plan.cohorts}


class TestQueue:
    def test_operations_wait_for_dispatch_for_each_other_and_for_inputs(self, clock):
        queue, start = OperationQueue(), clock.now
        assert queue.run(0.002) == (start, start + 2 * MS)
        assert queue.run(0.001) == (start + 2 * MS, start + 3 * MS)
        assert queue.run(0.001, start + 5 * MS) == (start + 5 * MS, start + 6 * MS)
        clock.now = start + 9 * MS
        assert queue.run(0.001) == (start + 9 * MS, start + 10 * MS)
        assert queue.busy_ns == 5 * MS

    @pytest.mark.parametrize("spin_ns", [0, 150_000])
    def test_waiting_ends_at_the_moment(self, clock, spin_ns):
        moment = clock.now + 3 * MS
        wait_until(moment, spin_ns=spin_ns)
        assert moment <= clock.now <= moment + 1000
        before = clock.now
        wait_until(moment)
        assert clock.now == before


class TestByHand:
    def test_decode(self, clock):
        device, start = make(), clock.now
        plan = steady_plan("device_only", num_layers=LAYERS, device_rows=2, length=50)
        device.run_decode(plan)
        end = device.sample(plan, ())
        # Linear 3 * 1.2, attention 2 * 0.3 + 100 * 0.03, head 2.2, overhead 0.7.
        assert end.at_ns == start + round((3.6 + 3.6 + 2.2 + 0.7) * MS)
        assert device.idle_since() is None
        assert device.fetch(end, 2).tokens.tolist() == [1, 1]
        assert clock.now >= end.at_ns
        assert device.idle_since() == end.at_ns
        assert device.busy_ns == end.at_ns - start

    def test_prompts(self, clock):
        device, start = make(), clock.now
        chunk = PrefillChunk(request_id=0, slot=0, start=16, tokens=(1,) * 10, samples=True, step=0)
        plan = steady_plan("device_only", num_layers=LAYERS, device_rows=1, length=50)
        plan = type(plan)(number=0, strategy=plan.strategy, num_layers=LAYERS, prefill=(chunk,), decode=plan.decode)
        for load_of, attention, width in ((device_load, 0.3 + 1.5 + 0.03 * 215, 11), (decode_load, 0.3 + 1.5, 1)):
            device.load_of = load_of
            device.begin(plan)
            device.boundary(0, device=True, cohort=None, attended=None)
            for boundary in range(1, LAYERS + 1):
                device.layers(boundary, 1)
            end = device.sample(plan, ())
            linear = 3 * (1 + 0.1 * width)
            assert end.at_ns - start == pytest.approx((linear + attention + 2.2 + 0.7) * MS, abs=10)
            start = end.at_ns

    def test_a_cohort_goes_to_the_host_and_waits_for_it(self, clock):
        device, start, recorder = make(), clock.now, Recorder(label="emulated")
        device.record(recorder)
        plan = steady_plan("layer_sync", num_layers=LAYERS, device_rows=1, host_rows=3, length=100)
        cohort = plan.cohorts[0].id
        parked = begin_steps(device, plan)[cohort]
        sent = device.boundary(0, device=True, cohort=parked, attended=None)
        # Four rows of the cohort, padded, and one of the device: a quarter of 1.5, and boarding.
        left = start + round((0.25 * 1.5 + 0.5) * MS)
        # 8 of 12 heads go out.
        arrives = left + round(0.4 * MS)
        assert sent().shape == (4, 8, 16)
        assert arrives <= clock.now <= arrives + 1000
        (leaving,) = (span for span in recorder.trace().spans if span.track == "transfers")
        assert (leaving.name, leaving.begin_ns, leaving.end_ns) == ("to host", left, arrives)
        assert leaving.args == {"layer": 0, "cohort": cohort, "rows": 4}
        device.attend(0)
        clock.now = start + 20 * MS
        back = device.deliver(np.zeros((4, 4, 16), ml_dtypes.bfloat16))
        assert back.at_ns == start + round(20.2 * MS)
        assert device.boundary(LAYERS, device=True, cohort=parked, attended=back) is None
        end = device.sample(plan, [parked])
        assert end.at_ns == back.at_ns + round((0.75 * 1.5 + 0.5 + 2.4 + 0.9) * MS)

    def test_pages_move(self, clock):
        device, start = make(), clock.now
        # Five pages are padded to eight: 128 tokens, 0.03 ms each in three layers, read and written on the device.
        tiles = device.gather(1, [3, 4, 5, 6, 7])()
        assert tiles.shape == (8, 2, 2, PAGE, 16)
        arrived = start + round(2 * 1.28 * MS) + round(1.28 * MS)
        assert arrived <= clock.now <= arrived + 1000
        sent = device.deliver(tiles)
        assert sent.at_ns == clock.now + round(1.28 * MS)
        device.scatter(1, [3, 4, 5, 6, 7], sent)
        assert device.idle_since() is None
        end = sent.at_ns + round(2 * 1.28 * MS)
        clock.now = end + MS
        assert device.idle_since() == end

    def test_nothing_takes_time_on_request(self, clock):
        device, start = make(), clock.now
        device.costs = Costs(profile(), Terms())
        plan = steady_plan("layer_sync", num_layers=LAYERS, device_rows=1, host_rows=3)
        (parked,) = begin_steps(device, plan).values()
        assert device.boundary(0, device=True, cohort=parked, attended=None)().shape == (4, 8, 16)
        assert device.deliver(np.zeros((4, 4, 16))).at_ns == start
        device.gather(1, [3])()
        assert device.sample(plan, [parked]).at_ns == start


@pytest.mark.parametrize(
    "strategy", ["device_only", "layer_sync", "asymmetric_pipelining", "async_overlap", "fast_lane"]
)
@pytest.mark.parametrize("device_rows", [1, 3, 5])
def test_iterations_take_what_the_cost_model_walks(clock, strategy, device_rows):
    """With a host that attends in no time, as the executor would call it."""
    times = profile(padding_of(BUCKETS), hop=0.0)
    device, model = make(times), CostModel(times)
    hosted = 0 if strategy == "device_only" else 6
    for number in range(2 * (LAYERS + 1)):
        plan = steady_plan(
            strategy, num_layers=LAYERS, device_rows=device_rows, host_rows=hosted, num_cohorts=2, number=number
        )
        start = clock.now
        parked = begin_steps(device, plan)
        for stage in plan.stages:
            riding = None if stage.cohort is None else parked[stage.cohort]
            device.boundary(stage.boundary, device=stage.device, cohort=riding, attended=None)
            if stage.device and stage.boundary < LAYERS:
                device.attend(stage.boundary)
        device.fetch(device.sample(plan, ()), 1)
        expected = model.predict(plan)[0].iteration_s
        assert clock.now - start == pytest.approx(expected * 1e9, abs=2000)


class HandWorker:
    """Runs a job when somebody waits for it or for one behind it; each takes 5 ms once it has its input."""

    losses, num_pages = 0, CAPACITY.host_pages

    def __init__(self, clock):
        self.clock, self.queue, self.results, self.observers = clock, [], {}, []

    def attend(self, layer, qkv, table, lengths, deliver, *, tag, wake):
        job = HostJob(kind="attend", layer=layer, rows=len(lengths), tag=tag)
        self.queue.append((job, qkv, deliver))
        return job

    def join(self, job):
        while not job.ended:
            first, qkv, deliver = self.queue.pop(0)
            first.begun_ns = self.clock.now
            qkv()
            first.fetched_ns = self.clock.now
            self.clock.now += 5 * MS
            first.computed_ns = first.ended_ns = self.clock.now
            first.result = deliver(np.zeros((first.rows, 4, 16), ml_dtypes.bfloat16))
            for observer in self.observers:
                observer(first)


class ForgetfulDevice(EmulatedDevice):
    """Knows whether it works, but not since when it does not."""

    def idle_since(self):
        return None if super().idle_since() is None else apex_jax.execution.emulated_device.time.perf_counter_ns()


class TestWaits:
    """Only the part of a wait in which the device has nothing to do is its wait."""

    @pytest.fixture
    def waited(self, clock, monkeypatch):
        monkeypatch.setattr(apex_jax.execution.executor, "time", clock)

        def run(kind, strategy, **sizes):
            device = kind(profile(hop=0.0), SHAPE, dtype=np.dtype(np.float32), buckets=BUCKETS)
            executor, recorder = Executor(device, HandWorker(clock)), Recorder(label="emulated")
            executor.record(recorder)
            # The only cohort of async_overlap departs in plan 2.
            plans = [
                steady_plan(strategy, num_layers=LAYERS, num_cohorts=1, number=number, **sizes)
                for number in range(2, 2 + LAYERS + 1)
            ]
            waited = sum(executor.submit(plan).wait_ns for plan in plans)
            spans = recorder.trace().spans
            recorded = sum(span.end_ns - span.begin_ns for span in spans if span.name == "device waits")
            assert recorded == waited
            parts = [span for span in spans if span.track == "device" and span.name != "iteration"]
            gaps = [
                after.begin_ns - before.end_ns
                for before, after in itertools.pairwise(parts)
                if after.args.get("cohort") is not None and after.args["layer"] > 0
            ]
            return waited, gaps

        return run

    @pytest.mark.parametrize(
        ("strategy", "device_rows"),
        [
            *itertools.product(["layer_sync", "asymmetric_pipelining"], [0, 2, 8]),
            *itertools.product(["async_overlap"], [2, 8]),
        ],
    )
    def test_are_the_gaps_in_its_work(self, waited, strategy, device_rows):
        wait_ns, gaps = waited(EmulatedDevice, strategy, device_rows=device_rows, host_rows=4, length=50)
        # The host looks for its input a microsecond late.
        assert wait_ns == pytest.approx(sum(gaps), abs=1000 * len(gaps))
        assert len(gaps) >= LAYERS

    def test_by_hand(self, waited):
        """Twelve jobs; the device attends to two rows of 50 for (0.6 + 3.0) / 3 ms meanwhile."""
        wait_ns, _ = waited(EmulatedDevice, "layer_sync", device_rows=2, host_rows=4, length=50)
        assert wait_ns == pytest.approx(12 * 3.8 * MS, rel=0.02)

    def test_are_at_least_what_is_known(self, waited):
        """The device is at work at the last look before the end if it attends, and not if it has nothing else to do."""
        assert waited(ForgetfulDevice, "layer_sync", device_rows=2, host_rows=4, length=50)[0] == 0
        wait_ns, _ = waited(ForgetfulDevice, "layer_sync", device_rows=0, host_rows=4, length=50)
        assert wait_ns == pytest.approx(12 * 5 * MS, abs=12_000)


@pytest.mark.parametrize("strategy", ["layer_sync", "asymmetric_pipelining", "async_overlap", "fast_lane"])
def test_an_engine_serves_requests_on_it(strategy):
    """Real threads, host pages and moves; the device takes no time."""
    layout = HostKVConfig(num_layers=LAYERS, num_kv_heads=2, head_width=16, page_size=PAGE)
    worker = HostWorker(allocate(layout, CAPACITY.host_pages * layout.page_bytes, jax.devices("cpu")[0]), num_heads=4)
    device = make(profile(padding_of(BUCKETS)))
    device.costs = Costs(device.costs.profile, Terms())
    executor = Executor(device, worker)
    recorder = Recorder(label="emulated")
    executor.record(recorder)
    engine = Engine(executor, FixedPolicy(strategy=strategy, max_host_requests=10))
    generations = []
    for index in range(14):
        params = SamplingParams(temperature=0, max_tokens=30 + index, ignore_eos=True)
        stream = OutputStream(params, None, eos_token_ids=())
        generations.append(engine.prepare([1] * (40 + index), params, stream, seed=0, index=index))
        engine.add(generations[-1])
    while engine.has_unfinished:
        engine.step()
    assert [len(generation.stream.token_ids) for generation in generations] == [30 + index for index in range(14)]
    stats = engine.stats()
    assert stats.host_tokens > 0
    assert stats.evictions > 0
    assert (stats.free_pages, stats.free_host_pages) == (stats.num_pages, stats.num_host_pages)
    spans = recorder.trace().spans
    assert {"device", "host", "transfers"} <= {span.track for span in spans}
    iterations = [span for span in spans if span.track == "device" and span.name == "iteration"]
    assert len(iterations) == stats.iterations
