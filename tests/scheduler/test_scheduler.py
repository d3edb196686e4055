"""Plans worked out by hand, and random loads against a model of the memory that plans are about."""

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apex_jax.scheduler import DecodeRow, NewPages, PrefillChunk, Request, Scheduler

from .machines import capacity

PAGE = 4


def make(*, pages, slots=4, budget=8):
    return Scheduler(capacity(pages, page=PAGE, rows=slots, prompt=budget), num_layers=2)


def request(number, length, max_tokens):
    return Request(id=number, prompt=tuple(range(100 * number, 100 * number + length)), max_tokens=max_tokens)


def chunk(number, slot, start, tokens, *, samples, step=0):
    return PrefillChunk(request_id=number, slot=slot, start=start, tokens=tuple(tokens), samples=samples, step=step)


def row(number, slot, length, step):
    return DecodeRow(request_id=number, slot=slot, length=length, step=step)


class TestByHand:
    def test_chunks_share_the_budget_and_decodes_ride_along(self):
        scheduler = make(pages=20)
        scheduler.add(request(0, 10, 2))
        scheduler.add(request(1, 3, 3))

        first = scheduler.schedule()
        assert first.prefill == (chunk(0, 0, 0, range(8), samples=False),)
        assert first.decode == ()
        assert first.new_pages == (NewPages(slot=0, first=0, pages=(0, 1, 2)),)
        assert (first.number, first.prefill_tokens, first.sampling_requests) == (0, 8, ())

        second = scheduler.schedule()
        assert second.prefill == (
            chunk(0, 0, 8, (8, 9), samples=True),
            chunk(1, 1, 0, (100, 101, 102), samples=True),
        )
        assert second.sampling_requests == (0, 1)
        assert scheduler.update(first, []) == []

        third = scheduler.schedule()
        assert third.prefill == ()
        assert third.decode == (row(0, 0, 11, 1), row(1, 1, 4, 1))
        assert third.new_pages == ()
        assert [(r.id, i) for r, i in scheduler.update(second, [70, 71])] == [(0, 0), (1, 1)]

        # Request 0 has both its tokens under way; request 1 needs a page for its fifth position.
        fourth = scheduler.schedule()
        assert fourth.decode == (row(1, 1, 5, 2),)
        assert [(change.slot, change.first, len(change.pages)) for change in fourth.new_pages] == [(1, 1, 1)]
        assert [r.output for r, _ in scheduler.update(third, [80, 81])] == [[70, 80], [71, 81]]
        scheduler.finish(0)
        assert scheduler.schedule() is None
        scheduler.update(fourth, [91])
        scheduler.finish(1)
        assert not scheduler.has_unfinished
        assert scheduler.pages.num_free == 20

    def test_the_youngest_gives_way_and_resumes_with_all_its_tokens(self):
        scheduler = make(pages=4)
        scheduler.add(request(0, 4, 8))
        scheduler.add(request(1, 3, 6))
        plans = [scheduler.schedule()]  # two prompts: pages 0 and 1
        for step in range(1, 5):
            plans.append(scheduler.schedule())
            scheduler.update(plans[-2], [50 + step, 60 + step])
        # Lengths are 8 and 7, pages 2 and 2. The next token of 0 needs a third page.
        preempting = scheduler.schedule()
        assert preempting.decode == (row(0, 0, 9, 5),)
        assert (scheduler.num_running, scheduler.num_waiting, scheduler.preemptions) == (1, 1, 1)
        # Request 1 has a token under way, so it cannot be prefilled again yet.
        assert preempting.prefill == ()
        arrived = scheduler.update(plans[-1], [55, 65])
        assert arrived[1][0].output == [61, 62, 63, 64, 65]
        blocked = scheduler.schedule()
        assert blocked.prefill == ()
        scheduler.update(preempting, [56])
        scheduler.update(blocked, [57])
        scheduler.finish(0)
        again = scheduler.schedule()
        assert again.prefill == (chunk(1, 0, 0, (100, 101, 102, 61, 62, 63, 64, 65), samples=True, step=5),)
        last = scheduler.update(again, [66])
        assert last[0][0].output == [61, 62, 63, 64, 65, 66]
        assert scheduler.schedule() is None

    def test_a_small_request_does_not_overtake_a_large_one(self):
        scheduler = make(pages=6, budget=100)
        for number, length in enumerate((12, 16, 1)):
            scheduler.add(request(number, length, 2))
        plan = scheduler.schedule()
        assert [c.request_id for c in plan.prefill] == [0]
        assert (scheduler.num_running, scheduler.num_waiting) == (1, 2)

    def test_a_page_stays_free_for_each_running_request(self):
        scheduler = make(pages=3, budget=100)
        scheduler.add(request(0, 4, 5))
        scheduler.add(request(1, 8, 1))
        assert [c.request_id for c in scheduler.schedule().prefill] == [0]

    def test_tokens_of_a_finished_request_are_ignored(self):
        scheduler = make(pages=4)
        scheduler.add(request(0, 2, 9))
        first, second = scheduler.schedule(), scheduler.schedule()
        scheduler.update(first, [7])
        scheduler.finish(0)
        assert scheduler.update(second, [8]) == []
        assert scheduler.pages.num_free == 4

    def test_a_waiting_request_can_be_finished(self):
        scheduler = make(pages=4, slots=1)
        scheduler.add(request(0, 2, 9))
        scheduler.add(request(1, 2, 9))
        scheduler.schedule()
        scheduler.finish(1)
        assert (scheduler.num_running, scheduler.num_waiting) == (1, 0)


class TestRefused:
    def test_what_the_pool_can_never_hold(self):
        scheduler = make(pages=2)
        scheduler.add(request(0, 5, 4))  # the last token is sampled and never stored
        with pytest.raises(ValueError, match="prompt of 5 and max_tokens=5 exceed the device KV cache of 8 tokens"):
            scheduler.add(request(1, 5, 5))
        assert scheduler.num_waiting == 1

    def test_an_id_in_use(self):
        scheduler = make(pages=2)
        scheduler.add(request(3, 2, 2))
        with pytest.raises(ValueError, match="request id 3 is already in use"):
            scheduler.add(request(3, 2, 2))

    @pytest.mark.parametrize(("slots", "budget", "message"), [(0, 8, "max_num_seqs is 0"), (2, -1, "tokens is -1")])
    def test_limits(self, slots, budget, message):
        with pytest.raises(ValueError, match=message):
            make(pages=2, slots=slots, budget=budget)

    @pytest.mark.parametrize(("length", "max_tokens", "message"), [(0, 1, "empty prompt"), (1, 0, "max_tokens=0")])
    def test_requests(self, length, max_tokens, message):
        with pytest.raises(ValueError, match=message):
            request(5, length, max_tokens)


def token_of(number, step):
    """The token that the pretended model gives a request at a step."""
    return 1_000_000 * (number + 1) + step


class Memory:
    """A device whose pages remember which token of which request they hold; it runs plans in order."""

    def __init__(self, num_pages, slots):
        self.cells = [[None] * PAGE for _ in range(num_pages)]
        self.tables = [[None] * num_pages for _ in range(slots)]
        self.last = [None] * slots

    def run(self, plan, prompts):
        for change in plan.new_pages:
            self.tables[change.slot][change.first : change.first + len(change.pages)] = change.pages
        sampled = []
        for c in plan.prefill:
            assert c.start % PAGE == 0
            for offset, token in enumerate(c.tokens):
                self.write(c.slot, c.start + offset, (c.request_id, token))
            self.check(c.slot, c.request_id, c.start + len(c.tokens), prompts)
            if c.samples:
                sampled.append((c.request_id, c.slot, c.step, c.start + len(c.tokens)))
        for r in plan.decode:
            number, token = self.last[r.slot]
            assert number == r.request_id
            self.write(r.slot, r.length - 1, (r.request_id, token))
            self.check(r.slot, r.request_id, r.length, prompts)
            sampled.append((r.request_id, r.slot, r.step, r.length))
        for number, slot, step, length in sampled:
            assert length == len(prompts[number]) + step
            self.last[slot] = (number, token_of(number, step))
        assert [number for number, *_ in sampled] == list(plan.sampling_requests)
        return [token_of(number, step) for number, _, step, _ in sampled]

    def write(self, slot, position, content):
        self.cells[self.tables[slot][position // PAGE]][position % PAGE] = content

    def check(self, slot, number, length, prompts):
        prompt = prompts[number]
        sequence = [*prompt, *(token_of(number, step) for step in range(length - len(prompt)))]
        held = [self.cells[self.tables[slot][t // PAGE]][t % PAGE] for t in range(length)]
        assert held == [(number, token) for token in sequence[:length]]


REQUEST = st.tuples(
    st.integers(0, 30),  # arrives at this iteration
    st.integers(1, 40),  # prompt
    st.integers(1, 25),  # max_tokens
    st.integers(1, 30),  # ends by itself after as many tokens
    st.one_of(st.none(), st.integers(0, 60)),  # cancelled at this iteration
)


@settings(max_examples=150, deadline=None)
@given(
    load=st.lists(REQUEST, min_size=1, max_size=14),
    spare=st.integers(0, 12),
    slots=st.integers(1, 6),
    budget=st.integers(1, 40),
)
def test_random_loads(load, spare, slots, budget):
    num_pages = max(-(-(prompt + limit - 1) // PAGE) for _, prompt, limit, _, _ in load) + spare
    scheduler = make(pages=num_pages, slots=slots, budget=budget)
    load = sorted(load, key=lambda item: item[0])
    requests = [request(i, prompt, limit) for i, (_, prompt, limit, _, _) in enumerate(load)]
    prompts = [r.prompt for r in requests]
    memory, pending, alive, started, ended = Memory(num_pages, slots), deque(), {}, [], {}
    most = 70 + sum(limit + (prompt + limit) // PAGE + 4 for _, prompt, limit, _, _ in load)
    for iteration in range(most):
        for i, (arrival, *_, cancelled) in enumerate(load):
            if arrival == iteration:
                scheduler.add(requests[i])
                alive[i] = requests[i]
            if cancelled == iteration and i in alive:
                scheduler.finish(i)
                del alive[i]
        oldest = min(alive, default=None)
        preemptions = alive[oldest].preemptions if alive else 0
        plan = scheduler.schedule()
        if plan is not None:
            check_plan(plan, slots, budget)
            started += [c.request_id for c in plan.prefill if c.start == 0 and c.request_id not in started]
            pending.append((plan, memory.run(plan, prompts)))
        if alive:
            check_progress(plan, alive[oldest], preemptions)
        if pending and (plan is None or len(pending) > 1):
            done, tokens = pending.popleft()
            for arrived, place in scheduler.update(done, tokens):
                assert arrived.output[-1] == tokens[place] == token_of(arrived.id, len(arrived.output) - 1)
                if len(arrived.output) == min(load[arrived.id][2:4]):
                    scheduler.finish(arrived.id)
                    ended[arrived.id] = alive.pop(arrived.id).output
        held = [page for r in alive.values() for page in r.pages]
        assert len(held) == len(set(held)) == num_pages - scheduler.pages.num_free
        taken = [r.slot for r in alive.values() if r.slot is not None]
        assert len(taken) == len(set(taken)) == scheduler.num_running
        if not alive and not pending and iteration > 30:
            break
    assert not alive
    assert not scheduler.has_unfinished
    assert scheduler.pages.free_ids() == list(range(num_pages))
    assert started == sorted(started)
    for i, output in ended.items():
        assert output == [token_of(i, step) for step in range(min(load[i][2:4]))]


def check_plan(plan, slots, budget):
    rows = [(item.slot, item.request_id) for item in (*plan.prefill, *plan.decode)]
    assert len({slot for slot, _ in rows}) == len({number for _, number in rows}) == len(rows) <= slots
    assert plan.prefill_tokens <= max(budget, PAGE)
    assert sum(-(-len(c.tokens) // PAGE) for c in plan.prefill) <= max(1, budget // PAGE)


def check_progress(plan, oldest, preemptions):
    """The request that came first is never put back and advances in every plan: nothing can go round in circles."""
    assert oldest.preemptions == preemptions
    advancing = {item.request_id for item in (*plan.prefill, *plan.decode)} if plan else set()
    assert oldest.id in advancing or oldest.in_flight
