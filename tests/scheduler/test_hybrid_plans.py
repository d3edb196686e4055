"""Plans with a host tier, worked out by hand: who rides where, who moves, who gives way.

Pages of 4 tokens; results come one plan late, as in the engine. A plan's line is its own description without number
and strategy; `cohort 1 at 0..2: 5@7, -` is a cohort that rides boundaries 0 to 2 with request 5, whose context has 7
tokens, and a place that somebody has left.
"""

from dataclasses import replace

import pytest

from apex_jax.scheduler import Decision, Eviction, Landing, NewPages, Request, Scheduler

from .machines import capacity

PAGE = 4
LAYERS = 2


class Chosen:
    """The policy of a test: what it says last."""

    def __init__(self, decision):
        self.decision = decision

    def decide(self, situation):
        return self.decision


def layer_sync(size=4, most=4):
    return Decision(strategy="layer_sync", lanes=(size,), max_host_requests=most)


def pipelining(first=1, second=1):
    return Decision(strategy="asymmetric_pipelining", lanes=(first, second), max_host_requests=4)


def overlap(*lanes, most=4):
    return Decision(strategy="async_overlap", lanes=lanes, max_host_requests=most)


DEVICE_ONLY = Decision(strategy="device_only")


class Run:
    """A scheduler with the part that an engine plays: results one plan late, fetches that arrive at once."""

    def __init__(self, decision, *, device=8, host=8, slots=1, host_slots=4, layers=LAYERS, budget=8):
        self.policy = Chosen(decision)
        self.scheduler = Scheduler(
            capacity(device, host, page=PAGE, rows=slots, host_rows=host_slots, prompt=budget),
            num_layers=layers,
            policy=self.policy,
        )
        self.requests, self.pending, self.plans = {}, [], []
        self.fetches_arrive = True

    def add(self, *, prompt=3, limit=9):
        number = len(self.requests)
        self.requests[number] = Request(id=number, prompt=(1,) * prompt, max_tokens=limit)
        self.scheduler.add(self.requests[number])

    def step(self):
        """Return the next plan's line, "" if there is none."""
        for request in self.requests.values():
            if request.fetching and self.fetches_arrive:
                assert self.scheduler.fetch_arrived(request.id)
        plan = self.scheduler.schedule()
        if plan is not None:
            self.plans.append(plan)
            self.pending.append(plan)
        if self.pending and (plan is None or len(self.pending) > 1):
            done = self.pending.pop(0)
            for request, _ in self.scheduler.update(done, [7] * len(done.sampling_requests)):
                if len(request.output) == request.max_tokens:
                    self.scheduler.finish(request.id)
        return "" if plan is None else str(plan).partition(": ")[2].replace("prefill -; ", "").replace("decode -; ", "")

    def lines(self, count):
        return [self.step() for _ in range(count)]


class TestNamed:
    """Moves that a policy asks for although nobody needs them."""

    def test_to_the_host_and_back(self):
        run = Run(layer_sync(), slots=2, host_slots=1)
        run.add()
        run.add()
        run.lines(2)
        # The host has one place, and nobody is called 7.
        run.policy.decision = replace(layer_sync(), evict=(0, 1, 7), fetch=(0, 1))
        assert run.lines(1) == ["decode 1@5; evict 0; fetch 0"]
        run.policy.decision = layer_sync()
        assert run.lines(2) == ["decode 0@5, 1@6; land 0", "decode 0@6, 1@7"]

    def test_back_to_those_that_wait(self):
        run = Run(layer_sync(), slots=2)
        run.add()
        run.add()
        run.lines(3)
        run.policy.decision = replace(layer_sync(), preempt=(0,))
        assert run.lines(1) == ["decode 1@6"]
        run.policy.decision = layer_sync()
        # Its third token was under way: a prompt of three and three tokens are computed again, and give the fourth.
        assert run.lines(2) == ["prefill 0[0:6]; decode 1@7", "decode 0@7, 1@8"]


class TestLayerSync:
    def test_all_ride_all_boundaries_in_one_cohort(self):
        run = Run(layer_sync())
        for _ in range(3):
            run.add(limit=5)
        # The device has one place: each newcomer drives the one before it to the host, where it goes on at once.
        assert run.lines(7) == [
            "prefill 0[0:3]; decode -",
            "prefill 1[0:3]; cohort 0 at 0..2: 0@4; evict 0",
            "prefill 2[0:3]; cohort 1 at 0..2: 0@5, 1@4; evict 1",
            "decode 2@4; cohort 2 at 0..2: 0@6, 1@5",
            "decode 2@5; cohort 3 at 0..2: 0@7, 1@6",
            "decode 2@6; cohort 4 at 0..2: 1@7",
            "decode 2@7",
        ]
        assert {stage.device for stage in run.plans[3].stages} == {True}
        assert [stage.cohort for stage in run.plans[3].stages] == [2, 2, 2]
        assert run.lines(2) == ["", ""]
        assert not run.scheduler.has_unfinished

    def test_more_than_the_lane_holds_take_turns(self):
        run = Run(layer_sync(size=2))
        for _ in range(4):
            run.add()
        run.lines(4)
        # Who has waited longest to begin a token comes first, the older one of two that waited as long.
        assert run.lines(4) == [
            "decode 3@4; cohort 3 at 0..2: 0@7, 1@6",
            "decode 3@5; cohort 4 at 0..2: 2@4, 0@8",
            "decode 3@6; cohort 5 at 0..2: 1@7, 0@9",
            "decode 3@7; cohort 6 at 0..2: 2@5, 0@10",
        ]


class TestPipelining:
    def test_the_first_of_two_cohorts_shares_the_devices_pass(self):
        run = Run(pipelining())
        for _ in range(3):
            run.add()
        assert run.lines(5)[2:] == [
            "prefill 2[0:3]; cohort 1 at 0..2: 0@5; cohort 2 at 0..2: 1@4; evict 1",
            "decode 2@4; cohort 3 at 0..2: 0@6; cohort 4 at 0..2: 1@5",
            "decode 2@5; cohort 5 at 0..2: 0@7; cohort 6 at 0..2: 1@6",
        ]
        assert [(stage.boundary, stage.device, stage.cohort) for stage in run.plans[4].stages] == [
            (0, True, 5),
            (0, False, 6),
            (1, True, 5),
            (1, False, 6),
            (2, True, 5),
            (2, False, 6),
        ]
        assert run.plans[4].sampling_requests == (2, 0, 1)


class TestOverlap:
    def test_a_boundary_an_iteration_and_a_token_every_three(self):
        run = Run(overlap(4))
        run.add()
        run.add()
        assert run.lines(8) == [
            "prefill 0[0:3]; decode -",
            "prefill 1[0:3]; cohort 0 at 0: 0@4; evict 0",
            "decode 1@4; cohort 0 at 1: 0@4",
            "decode 1@5; cohort 0 at 2: 0@4",
            "decode 1@6; cohort 1 at 0: 0@5",
            "decode 1@7; cohort 1 at 1: 0@5",
            "decode 1@8; cohort 1 at 2: 0@5",
            "decode 1@9; cohort 2 at 0: 0@6",
        ]
        assert [plan.sampling_requests for plan in run.plans[1:5]] == [(1,), (1,), (1, 0), (1,)]

    def test_departures_are_spread_over_the_iterations_of_a_token(self):
        run = Run(overlap(2, 2), layers=3, host_slots=6)
        for _ in range(5):
            run.add()
        # Four boundaries and two lanes: a cohort departs with every second plan.
        assert run.lines(12)[5:] == [
            "decode 4@4; cohort 1 at 2: 1@4, 2@4; cohort 2 at 0: 0@5, 3@4",
            "decode 4@5; cohort 1 at 3: 1@4, 2@4; cohort 2 at 1: 0@5, 3@4",
            "decode 4@6; cohort 2 at 2: 0@5, 3@4; cohort 3 at 0: 1@5, 2@5",
            "decode 4@7; cohort 2 at 3: 0@5, 3@4; cohort 3 at 1: 1@5, 2@5",
            "decode 4@8; cohort 3 at 2: 1@5, 2@5; cohort 4 at 0: 0@6, 3@5",
            "decode 4@9; cohort 3 at 3: 1@5, 2@5; cohort 4 at 1: 0@6, 3@5",
            "decode 4@10; cohort 4 at 2: 0@6, 3@5; cohort 5 at 0: 1@6, 2@6",
        ]

    def test_without_device_rows_they_ride_to_the_end(self):
        run = Run(overlap(1, 1))
        for _ in range(3):
            run.add(limit=5)
        assert run.lines(10)[6:] == [
            "decode 2@7; cohort 2 at 2: 0@5; cohort 3 at 0: 1@5",
            # Request 2 has its last token under way and holds the device's only place until that has come.
            "cohort 3 at 1..2: 1@5",
            "cohort 4 at 0..2: 1@6; fetch 0",
            "decode 0@6; cohort 5 at 0: 1@7; land 0",
        ]


class TestFastLane:
    def test_one_gets_a_token_in_every_iteration_and_others_every_three(self):
        run = Run(Decision(strategy="fast_lane", lanes=(1, 2), max_host_requests=4))
        for _ in range(4):
            run.add(limit=20)
        assert run.lines(9) == [
            "prefill 0[0:3]; decode -",
            "prefill 1[0:3]; cohort 0 at 0..2: 0@4; evict 0",
            "prefill 2[0:3]; cohort 1 at 0..2: 0@5; cohort 2 at 0: 1@4; evict 1",
            "prefill 3[0:3]; cohort 3 at 0..2: 0@6; cohort 2 at 1: 1@4; evict 2",
            "decode 3@4; cohort 4 at 0..2: 0@7; cohort 2 at 2: 1@4",
            "decode 3@5; cohort 5 at 0..2: 0@8; cohort 6 at 0: 1@5, 2@4",
            "decode 3@6; cohort 7 at 0..2: 0@9; cohort 6 at 1: 1@5, 2@4",
            "decode 3@7; cohort 8 at 0..2: 0@10; cohort 6 at 2: 1@5, 2@4",
            "decode 3@8; cohort 9 at 0..2: 0@11; cohort 10 at 0: 1@6, 2@5",
        ]

    def test_who_rides_in_it_stays_until_its_end(self):
        run = Run(Decision(strategy="fast_lane", lanes=(1, 1), max_host_requests=4))
        for limit in (6, 20, 20):
            run.add(limit=limit)
        run.lines(12)
        lanes = [[c.rows[0].request_id for c in plan.cohorts if c.last - c.first == LAYERS] for plan in run.plans]
        # Request 1 takes the lane once it is between two tokens.
        assert lanes == [[], [0], [0], [0], [0], [0], [], [], [1], [1], [1], [1]]


class TestChanges:
    def test_mid_token_rows_drain_before_others_depart(self):
        run = Run(overlap(1, 1))
        for _ in range(3):
            run.add()
        run.lines(4)
        run.policy.decision = layer_sync(size=2)
        assert run.lines(3) == [
            "decode 2@5; cohort 1 at 1..2: 1@4",
            "decode 2@6; cohort 2 at 0..2: 0@5, 1@5",
            "decode 2@7; cohort 3 at 0..2: 0@6, 1@6",
        ]

    def test_device_only_lets_them_arrive_and_then_rest(self):
        run = Run(overlap(1, 1))
        for _ in range(3):
            run.add()
        run.lines(4)
        run.policy.decision = DEVICE_ONLY
        assert run.lines(3) == ["decode 2@5; cohort 1 at 1: 1@4", "decode 2@6; cohort 1 at 2: 1@4", "decode 2@7"]
        # With device rows gone nothing but the host's could go on: it does, until they have come to the device.
        while "decode" in (line := run.step()):
            pass
        assert line == "cohort 2 at 0..2: 0@5, 1@5"
        assert run.lines(2) == ["cohort 3 at 0..2: 1@6; fetch 0", "decode 0@6; land 0"]

    def test_from_through_to_overlap(self):
        run = Run(layer_sync())
        run.add()
        run.add()
        run.lines(3)
        run.policy.decision = overlap(1)
        assert run.lines(3) == [
            "decode 1@5; cohort 2 at 0: 0@6",
            "decode 1@6; cohort 2 at 1: 0@6",
            "decode 1@7; cohort 2 at 2: 0@6",
        ]


class TestRoom:
    def test_pages_of_an_eviction_and_a_landing(self):
        """Request 0 leaves with the page its three tokens fill, grows on the host, and lands on other pages."""
        run = Run(layer_sync(), device=4, host=6)
        run.add(limit=7)
        run.add(limit=4)
        run.lines(2)
        assert run.plans[1].evictions == (Eviction(request_id=0, slot=0, device_pages=(0,), host_pages=(0,)),)
        # The page it left is free for the one that drove it out. Its fifth token needs a second host page.
        assert run.plans[1].new_pages == (NewPages(slot=1, first=0, pages=(0,)),)
        assert run.plans[1].new_host_pages == ()
        run.lines(1)
        assert run.plans[2].new_host_pages == (NewPages(slot=0, first=1, pages=(1,)),)
        while not run.plans[-1].landings:
            run.step()
        (fetch,) = (fetch for plan in run.plans for fetch in plan.fetches)
        assert fetch.host_pages == (0, 1)
        (landing,) = run.plans[-1].landings
        assert landing == Landing(request_id=0, slot=0, device_pages=landing.device_pages)
        assert len(landing.device_pages) == 2
        assert run.scheduler.host_pages.num_free == 6
        assert run.plans[-1].decode[0].request_id == 0

    def test_a_request_that_cannot_grow_evicts_the_youngest_rather_than_preempt_it(self):
        run = Run(layer_sync(), device=5, slots=2)
        run.add(prompt=7)
        run.add(prompt=7)
        lines = run.lines(3)
        assert lines[1:] == [
            "prefill 1[0:7]; decode 0@8",
            # The ninth token of 0 takes the last free page; the eighth of 1 fits in its second.
            "decode 0@9, 1@8",
        ]
        assert run.lines(1) == ["decode 0@10; cohort 0 at 0..2: 1@9; evict 1"]
        assert run.scheduler.preemptions == 0

    def test_where_the_host_is_full_it_preempts(self):
        run = Run(layer_sync(), device=5, host=1, slots=2)
        run.add(prompt=7)
        run.add(prompt=7)
        run.lines(3)
        assert run.lines(1) == ["decode 0@10"]
        assert (run.scheduler.preemptions, run.scheduler.evictions) == (1, 0)

    def test_where_the_policy_wants_nobody_on_the_host_it_preempts(self):
        run = Run(layer_sync(most=0), device=5, slots=2)
        run.add(prompt=7)
        run.add(prompt=7)
        run.lines(3)
        assert run.lines(1) == ["decode 0@10"]
        assert (run.scheduler.preemptions, run.scheduler.evictions) == (1, 0)

    def test_host_places_are_counted(self):
        run = Run(layer_sync(most=2), host_slots=4)
        for _ in range(5):
            run.add()
        run.lines(6)
        assert (run.scheduler.num_on_host, run.scheduler.num_waiting) == (2, 2)

    def test_host_slots_are_counted(self):
        run = Run(layer_sync(), host_slots=1)
        for _ in range(4):
            run.add()
        run.lines(6)
        assert (run.scheduler.num_on_host, run.scheduler.num_running, run.scheduler.num_waiting) == (1, 2, 2)

    def test_a_small_request_does_not_overtake_a_large_one(self):
        """The first that waits finds no room on the device even if all were evicted: nobody is."""
        run = Run(layer_sync(), device=4, host=2, slots=2)
        run.add(prompt=7)
        run.add(prompt=9, limit=4)
        run.add(prompt=1, limit=2)
        assert run.lines(3) == ["prefill 0[0:7]; decode -", "decode 0@8", "decode 0@9"]
        assert (run.scheduler.evictions, run.scheduler.num_waiting) == (0, 2)

    def test_on_a_full_host_the_youngest_that_rests_gives_way(self):
        """Four pages for two requests: with the ninth token of the older one there is none left for the other."""
        run = Run(layer_sync(), host=4)
        for _ in range(3):
            run.add(limit=12)
        while not run.scheduler.preemptions:
            run.step()
        assert (len(run.requests[0].host_pages), run.requests[0].length) == (3, 10)
        assert (run.requests[1].preemptions, run.requests[1].slot) == (1, None)
        assert run.requests[2].side == "device"


class TestFetchBack:
    @pytest.mark.parametrize("decision", [layer_sync(), pipelining(), overlap(2)], ids=lambda d: d.strategy)
    def test_as_the_device_drains(self, decision):
        """Also those that begin a token with every plan; the oldest first."""
        run = Run(decision)
        run.add(limit=20)
        run.add(limit=20)
        run.add(limit=4)
        while run.scheduler.num_on_host < 2:
            run.step()
        lines = []
        while not run.requests[0].landings:
            lines.append(run.step())
        assert len(lines) < 12
        assert run.requests[1].landings == 0

    def test_not_while_somebody_waits(self):
        run = Run(layer_sync(), slots=2, device=4, host_slots=1)
        run.add(prompt=3)
        run.add(prompt=3)
        run.add(prompt=3)
        while not run.scheduler.evictions:
            run.step()
        for _ in range(2):
            run.add(prompt=12, limit=2)
        for _ in range(4):
            run.step()
            if run.scheduler.num_waiting:
                assert not run.plans[-1].fetches

    def test_a_long_request_that_is_there_already_does_not_keep_a_short_one_away(self):
        """Twelve pages are free when request 3 has ended: less than request 0 has, more than request 2 needs."""
        run = Run(layer_sync(), device=26, slots=3, budget=60)
        for prompt, limit in ((44, 40), (3, 12), (3, 12), (3, 3)):
            run.add(prompt=prompt, limit=limit)
        assert run.lines(7) == [
            "prefill 0[0:44], 1[0:3], 2[0:3]; decode -",
            "prefill 3[0:3]; decode 0@45, 1@4; cohort 0 at 0..2: 2@4; evict 2",
            "decode 0@46, 1@5, 3@4; cohort 1 at 0..2: 2@5",
            "decode 0@47, 1@6, 3@5; cohort 2 at 0..2: 2@6",
            "decode 0@48, 1@7; cohort 3 at 0..2: 2@7",
            "decode 0@49, 1@8; fetch 2",
            "decode 0@50, 1@9, 2@8; land 2",
        ]

    def test_a_fetched_request_rests_until_it_lands(self):
        run = Run(layer_sync())
        run.add(limit=20)
        run.add(limit=3)
        run.fetches_arrive = False
        while not run.plans or not run.plans[-1].fetches:
            run.step()
        assert run.requests[0].fetching
        reserved = list(run.requests[0].pages)
        assert run.lines(3) == ["", "", ""]
        run.fetches_arrive = True
        length = run.requests[0].length
        assert run.step() == f"decode 0@{length}; land 0"
        assert run.plans[-1].landings[0].device_pages == tuple(reserved)

    def test_a_request_cancelled_on_its_way_gives_everything_back(self):
        run = Run(layer_sync())
        run.add(limit=20)
        run.add(limit=3)
        run.fetches_arrive = False
        while not run.plans or not run.plans[-1].fetches:
            run.step()
        run.scheduler.finish(0)
        assert not run.scheduler.fetch_arrived(0)
        assert not run.scheduler.has_unfinished
        assert (run.scheduler.pages.num_free, run.scheduler.host_pages.num_free) == (8, 8)


class TestMidToken:
    def test_who_ends_leaves_a_gap(self):
        run = Run(overlap(1, 1))
        for _ in range(3):
            run.add()
        *_, line = run.lines(4)
        assert line == "decode 2@4; cohort 0 at 2: 0@4; cohort 1 at 0: 1@4"
        run.scheduler.finish(1)
        assert run.lines(3) == [
            "decode 2@5; cohort 1 at 1: -; cohort 2 at 0: 0@5",
            "decode 2@6; cohort 1 at 2: -; cohort 2 at 1: 0@5",
            "decode 2@7; cohort 2 at 2: 0@5",
        ]
        assert run.plans[-2].sampling_requests == (2,)

    def test_the_last_of_all_takes_its_cohort_along(self):
        run = Run(overlap(2))
        run.add()
        run.add()
        run.lines(3)
        run.scheduler.finish(0)
        run.scheduler.finish(1)
        assert run.scheduler.schedule() is None
        run.pending.clear()
        run.add()
        assert run.lines(2) == ["prefill 2[0:3]; decode -", "decode 2@4"]

    def test_slots_are_taken_again_only_when_free(self):
        run = Run(overlap(1, 1, 1))
        for _ in range(8):
            run.add(limit=4)
        while run.scheduler.has_unfinished:
            run.step()
            taken = [request.slot for request in run.requests.values() if request.slot is not None]
            assert len(set(taken)) == len(taken) <= 5
        assert sorted(run.scheduler.free_slots) == list(range(5))
