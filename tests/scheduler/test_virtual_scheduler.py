"""The engine's scheduler and the simulator's side by side: the same requests come, go and move in every iteration."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from apex_jax.scheduler import Decision, Request, Scheduler
from apex_jax.scheduler.simulation.request_pool import SimRequest
from apex_jax.scheduler.simulation.virtual_engine import VirtualEngine

from .machines import capacity

PAGE = 4
LAYERS = 3
MANY = 100
LANES = {
    "device_only": (),
    "layer_sync": (MANY,),
    "asymmetric_pipelining": (MANY, MANY),
    "async_overlap": (MANY,) * (LAYERS + 1),
    "fast_lane": (1,) + (MANY,) * LAYERS,
}


class Always:
    """The same decision in every iteration, with place for all host rows."""

    def __init__(self, strategy, most=MANY):
        most = 0 if strategy == "device_only" else most
        self.decision = Decision(strategy=strategy, lanes=LANES[strategy], max_host_requests=most)

    def decide(self, situation):
        return self.decision


class Engine:
    """The engine's scheduler, where tokens and fetched pages come before the next plan."""

    def __init__(self, limits, policy):
        self.scheduler = Scheduler(limits, num_layers=LAYERS, policy=policy)
        self.requests = {}

    def add(self, number, prompt, output):
        self.requests[number] = Request(id=number, prompt=(1,) * prompt, max_tokens=output)
        self.scheduler.add(self.requests[number])

    def step(self):
        """Return what happens in the next iteration; None if nothing does."""
        scheduler = self.scheduler
        before = {number: request.preemptions for number, request in self.requests.items()}
        plan = scheduler.schedule()
        if plan is None:
            return None
        happened = {
            "prompts": sorted((chunk.request_id, chunk.start, len(chunk.tokens)) for chunk in plan.prefill),
            "decoding": len(plan.decode),
            "evicted": sorted(move.request_id for move in plan.evictions),
            "fetched": sorted(move.request_id for move in plan.fetches),
            "preempted": [number for number, times in before.items() if self.requests[number].preemptions > times],
            "waiting": scheduler.num_waiting,
            "on host": scheduler.num_on_host - len(plan.fetches),
        }
        arrived = [request for request, _ in scheduler.update(plan, [7] * len(plan.sampling_requests))]
        ended = [request.id for request in arrived if len(request.output) == request.max_tokens]
        for number in ended:
            scheduler.finish(number)
        for move in plan.fetches:
            assert scheduler.fetch_arrived(move.request_id)
        free = (scheduler.pages.num_free, scheduler.host_pages.num_free if scheduler.host_pages else 0)
        return happened | {"ended": sorted(ended), "free pages": free}


class Simulated:
    """The simulator's, one iteration at a time."""

    def __init__(self, limits, policy):
        self.engine, self.policy = VirtualEngine(limits, LAYERS), policy
        self.requests = {}

    def add(self, number, prompt, output):
        self.requests[number] = SimRequest(id=number, arrival_s=0.0, prompt=prompt, output=output)
        self.engine.scheduler.wait(self.requests[number])

    def step(self):
        """Return what happens in the next iteration; None if nobody is there."""
        engine, scheduler = self.engine, self.engine.scheduler
        if scheduler.is_empty:
            return None
        waited, on_host = {r.id for r in scheduler.waiting}, set(scheduler.host.lengths()[1])
        decoded = on_host.union(scheduler.device.lengths()[1])
        begun = {r.id: r.computed for r in scheduler.prefilling}
        step = engine.begin(self.policy.decide(engine.situation()))
        prompts = [(r.id, begun.get(r.id, 0), r.computed - begun.get(r.id, 0)) for r in scheduler.prefilling]
        hosted = set(scheduler.host.lengths()[1])
        happened = {
            "prompts": [prompt for prompt in prompts if prompt[2]],
            "decoding": scheduler.decoding,
            "evicted": sorted(hosted - on_host),
            "fetched": sorted(r.id for r in scheduler.landing),
            "preempted": sorted(
                {r.id for r in scheduler.waiting if r.id not in waited}
                | {r.id for r in scheduler.prefilling if r.id in decoded}
            ),
            "waiting": len(scheduler.waiting),
            "on host": len(hosted),
        }
        ended = engine.end(step, 1.0, 1)
        free = (scheduler.free, scheduler.host_free)
        return happened | {"ended": sorted(r.id for r in ended), "free pages": free}


def sides(load, *, spare, host_pages, slots, budget, strategy, most=MANY, window=None):
    """Return both schedulers, without requests."""
    ample = capacity(1, page=PAGE, prompt=budget, window=window)
    pages = max(ample.prompt_pages(prompt + output - 1) for _, prompt, output in load) + spare
    limits = capacity(pages, host_pages, page=PAGE, rows=slots, host_rows=MANY, prompt=budget, window=window)
    policy = Always(strategy, most)
    return Engine(limits, policy), Simulated(limits, policy)


REQUEST = st.tuples(
    st.integers(0, 30),  # arrives at this iteration
    st.integers(1, 30),  # prompt
    st.integers(1, 20),  # output
)
LOAD = st.lists(REQUEST, min_size=1, max_size=14).map(sorted)
SIZES = {
    "spare": st.integers(0, 12),
    "slots": st.integers(1, 8),
    "budget": st.integers(1, 40),
    "window": st.one_of(st.none(), st.integers(1, 20)),
}


def side_by_side(load, engine, simulated):
    """Yield what happens on both sides, iteration by iteration up to the end."""
    coming = list(enumerate(load))[::-1]
    iteration = 0
    while coming or engine.scheduler.has_unfinished:
        while coming and coming[-1][1][0] <= iteration:
            number, (_, prompt, output) = coming.pop()
            engine.add(number, prompt, output)
            simulated.add(number, prompt, output)
        yield engine.step(), simulated.step()
        iteration += 1
    assert simulated.engine.scheduler.is_empty


@settings(max_examples=200, deadline=None)
@given(load=LOAD, **SIZES)
def test_device_only(load, spare, slots, budget, window):
    both = sides(load, spare=spare, host_pages=0, slots=slots, budget=budget, window=window, strategy="device_only")
    for real, virtual in side_by_side(load, *both):
        assert real == virtual


@pytest.mark.parametrize("strategy", ["layer_sync", "asymmetric_pipelining"])
@settings(max_examples=200, deadline=None)
@given(load=LOAD, host_pages=st.one_of(st.integers(1, 40), st.just(400)), most=st.integers(0, 5), **SIZES)
def test_host_rows_that_go_through(strategy, load, host_pages, most, spare, slots, budget, window):
    """A token an iteration for everybody: the same throughout, unless the host runs out of pages."""
    both = sides(
        load,
        spare=spare,
        host_pages=host_pages,
        slots=slots,
        budget=budget,
        window=window,
        strategy=strategy,
        most=most,
    )
    on_host = set()
    for real, virtual in side_by_side(load, *both):
        if real != virtual:
            # See `test_where_the_host_runs_out_of_pages`.
            assert (on_host | set(virtual["evicted"])) & set(virtual["preempted"])
            same = ("prompts", "decoding", "evicted", "fetched")
            assert [real[key] for key in same] == [virtual[key] for key in same]
            return
        on_host = set(both[1].engine.scheduler.host.lengths()[1])


def test_where_the_host_runs_out_of_pages():
    """Five pages, two full ones of each request: the older one takes the last. In the engine the younger one rests, and
    keeps its pages until the older one needs them. In sums all host requests advance alike, so it is preempted."""
    load = [(0, 3, 12), (1, 3, 12), (2, 3, 12)]
    both = sides(load, spare=0, host_pages=5, slots=1, budget=PAGE, strategy="layer_sync")
    apart = next((real, virtual) for real, virtual in side_by_side(load, *both) if real != virtual)
    assert [(each["on host"], each["preempted"], each["free pages"][1]) for each in apart] == [
        (2, [], 0),
        (1, [1], 2),
    ]


@pytest.mark.parametrize("strategy", ["async_overlap", "fast_lane"])
@settings(max_examples=200, deadline=None)
@example(load=[(0, 1, 3), (0, 1, 3), (0, 13, 1), (1, 1, 1)], spare=0, slots=2, budget=1, window=None)
@example(load=[(0, 1, 3), (0, 1, 3), (0, 9, 1), (1, 1, 1)], spare=0, slots=1, budget=1, window=None)
@given(load=LOAD, **SIZES)
def test_cohorts_under_way(strategy, load, spare, slots, budget, window):
    """Cohorts hand their tokens over in steps, the simulator in averages, so host requests end earlier or later. While
    somebody waits nothing is fetched, and what happens on the device depends on nothing on a host that has room: it is
    the same."""
    both = sides(load, spare=spare, host_pages=400, slots=slots, budget=budget, window=window, strategy=strategy)
    for real, virtual in side_by_side(load, *both):
        if any(each and (each["fetched"] or (each["on host"] and not each["waiting"])) for each in (real, virtual)):
            return
        if real is None or virtual is None:
            assert real is virtual
            continue
        of_device = ("prompts", "decoding", "evicted", "preempted", "waiting")
        assert [real[key] for key in of_device] == [virtual[key] for key in of_device]
        assert real["free pages"][0] == virtual["free pages"][0]


def test_the_last_host_request_may_come_in_at_once():
    """It is alone when it lacks a page on the host, and has too few on the device to be fetched: it is preempted, and
    computed again in the same iteration."""
    load = [(0, 29, 9), (1, 1, 1), (1, 1, 1), (1, 1, 5)]
    both = sides(load, spare=0, host_pages=9, slots=1, budget=1, strategy="layer_sync", most=1)
    preempted = [real for real, virtual in side_by_side(load, *both) if real["preempted"] or virtual["preempted"]]
    assert [(each["preempted"], each["prompts"]) for each in preempted] == [([0], [(0, 0, 4)])]


@pytest.mark.parametrize("strategy", LANES)
@settings(max_examples=100, deadline=None)
@given(load=LOAD, host_pages=st.integers(1, 60), **SIZES)
def test_many_iterations_in_one_step(strategy, load, host_pages, spare, slots, budget, window):
    """They are taken at once only where nobody comes, goes or needs a page that is not free."""
    ends = []
    for most in (1, 64):
        _, simulated = sides(
            load, spare=spare, host_pages=host_pages, slots=slots, budget=budget, window=window, strategy=strategy
        )
        for number, (_, prompt, output) in enumerate(load):
            simulated.add(number, prompt, output)
        engine, scheduler, ended = simulated.engine, simulated.engine.scheduler, {}
        while not scheduler.is_empty:
            step = engine.begin(simulated.policy.decide(engine.situation()))
            for request in engine.end(step, 1.0, min(most, step.iterations)):
                ended[request.id] = engine.now
        ends.append((ended, scheduler.evictions, scheduler.fetches, scheduler.preemptions))
    assert ends[0] == ends[1]
