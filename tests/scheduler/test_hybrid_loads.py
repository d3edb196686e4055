"""Random loads with a host tier, run by a pretended device and host whose pages remember which tokens they hold."""

import random
from collections import deque
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from apex_jax.scheduler import STRATEGIES, Decision, Request, Scheduler

from .machines import capacity

PAGE = 4


def token_of(number, step):
    """The token that the pretended model gives a request at a step."""
    return 1_000_000 * (number + 1) + step


class Side:
    """Pages of one side, in each layer, and the page tables of the slots."""

    def __init__(self, layers, pages, slots):
        self.cells = [[[None] * PAGE for _ in range(pages)] for _ in range(layers)]
        self.tables = [[None] * 100 for _ in range(slots)]

    def apply(self, changes):
        for change in changes:
            self.tables[change.slot][change.first : change.first + len(change.pages)] = change.pages

    def replace(self, slot, pages, first):
        self.tables[slot][first : first + len(pages)] = pages

    def write(self, layer, table, position, content):
        self.cells[layer][table[position // PAGE]][position % PAGE] = content

    def read(self, layer, table, begin, end):
        return [self.cells[layer][table[t // PAGE]][t % PAGE] for t in range(begin, end)]


class Machine:
    """Runs plans in order, as an executor does, and checks that each attention finds the right tokens."""

    def __init__(self, layers, device_pages, host_pages, slots, prompts, window):
        self.layers, self.prompts, self.window = layers, prompts, window
        self.device, self.host = Side(layers, device_pages, slots), Side(layers, host_pages, slots)
        self.last = [None] * slots
        self.cohorts, self.fetched = {}, {}

    def run(self, plan):
        for landing in plan.landings:
            for layer, pages in enumerate(self.fetched.pop(landing.request_id)):
                for page, content in zip(landing.device_pages, pages, strict=True):
                    self.device.cells[layer][page] = list(content)
            self.device.replace(landing.slot, landing.device_pages, landing.first)
        self.device.apply(plan.new_pages)
        for eviction in plan.evictions:
            for layer in range(self.layers):
                for page, to in zip(eviction.device_pages, eviction.host_pages, strict=True):
                    self.host.cells[layer][to] = list(self.device.cells[layer][page])
            self.host.replace(eviction.slot, eviction.host_pages, eviction.first)
        self.host.apply(plan.new_host_pages)
        sampled = [*self.run_prefill(plan), *self.run_decode(plan), *self.run_cohorts(plan)]
        assert tuple(number for number, *_ in sampled) == plan.sampling_requests
        for number, slot, step, length in sampled:
            assert length == len(self.prompts[number]) + step
            self.last[slot] = (number, token_of(number, step))
        for fetch in plan.fetches:
            self.fetched[fetch.request_id] = [
                [list(self.host.cells[layer][page]) for page in fetch.host_pages] for layer in range(self.layers)
            ]
        return [token_of(number, step) for number, _, step, _ in sampled]

    def run_prefill(self, plan):
        for c in plan.prefill:
            table = self.device.tables[c.slot]
            for offset, token in enumerate(c.tokens):
                for layer in range(self.layers):
                    self.device.write(layer, table, c.start + offset, (c.request_id, token))
            self.check(self.device, range(self.layers), table, c.request_id, c.start + len(c.tokens), c.start)
            if c.samples:
                yield c.request_id, c.slot, c.step, c.start + len(c.tokens)

    def run_decode(self, plan):
        for r in plan.decode:
            assert self.last[r.slot][0] == r.request_id
            table = self.device.tables[r.slot]
            for layer in range(self.layers):
                self.device.write(layer, table, r.length - 1, self.last[r.slot])
            self.check(self.device, range(self.layers), table, r.request_id, r.length)
            yield r.request_id, r.slot, r.step, r.length

    def run_cohorts(self, plan):
        boundaries = {}
        for stage in plan.stages:
            if stage.cohort is not None:
                boundaries.setdefault(stage.cohort, []).append(stage.boundary)
        for cohort in plan.cohorts:
            assert boundaries[cohort.id] == list(range(cohort.first, cohort.last + 1))
            if cohort.first == 0:
                # Tables and tokens as they are when it departs.
                riding = [row and (row, self.last[row.slot], list(self.host.tables[row.slot])) for row in cohort.rows]
                assert all(token[0] == row.request_id for row, token, _ in filter(None, riding))
                self.cohorts[cohort.id] = (0, riding)
            position, riding = self.cohorts[cohort.id]
            assert position == cohort.first
            assert len(riding) == len(cohort.rows)
            for row, departed in zip(cohort.rows, riding, strict=True):
                assert row is None or row == departed[0]
            self.cohorts[cohort.id] = (cohort.last + 1, riding)
            for layer in range(cohort.first, min(cohort.last + 1, self.layers)):
                for row, (_, token, table) in (pair for pair in zip(cohort.rows, riding, strict=True) if pair[0]):
                    self.host.write(layer, table, row.length - 1, token)
                    self.check(self.host, [layer], table, row.request_id, row.length)
            if cohort.last == self.layers:
                del self.cohorts[cohort.id]
                yield from ((row.request_id, row.slot, row.step, row.length) for row in cohort.rows if row)

    def check(self, side, layers, table, number, length, first=None):
        """What the query at position `first` and those after it attend to is there."""
        first = length - 1 if first is None else first
        begin = 0 if self.window is None else max(0, first + 1 - self.window)
        prompt = self.prompts[number]
        sequence = [*prompt, *(token_of(number, step) for step in range(length - len(prompt)))]
        for layer in layers:
            assert side.read(layer, table, begin, length) == [(number, token) for token in sequence[begin:length]]


class Restless:
    """Another decision every now and then."""

    def __init__(self, rng, layers, host_slots):
        self.rng, self.layers, self.host_slots = rng, layers, host_slots
        self.decision = Decision(strategy="device_only")
        self.change = rng.choice((0.0, 0.1, 0.5, 1.0))
        self.move = rng.choice((0.0, 0.0, 0.1, 0.4))
        self.choose()

    def choose(self):
        strategy = self.rng.choice(STRATEGIES)
        count = {"device_only": 0, "layer_sync": 1, "asymmetric_pipelining": 2}.get(strategy)
        count = self.rng.randint(1, self.layers + 2) if count is None else count
        self.decision = Decision(
            strategy=strategy,
            lanes=tuple(self.rng.randint(1, self.host_slots) for _ in range(count)),
            max_host_requests=self.rng.randint(0, self.host_slots),
        )

    def decide(self, situation):
        assert situation.host_rows >= situation.mid_token_rows >= 0
        if self.rng.random() < self.change:
            self.choose()
        roster = situation.roster()
        ids, count = list(roster.arrivals), len(roster.device)
        device, host = ids[:count], ids[count : count + len(roster.host)]
        return replace(
            self.decision,
            evict=self.some(device),
            fetch=self.some(host),
            # Who begins anew all the time never comes to an end.
            preempt=self.some(device + host) if self.rng.random() < 0.2 else (),
        )

    def some(self, ids):
        return tuple(number for number in ids if self.rng.random() < self.move)


REQUEST = st.tuples(
    st.integers(0, 30),  # arrives at this iteration
    st.integers(1, 30),  # prompt
    st.integers(1, 20),  # max_tokens
    st.integers(1, 25),  # ends by itself after as many tokens
    st.one_of(st.none(), st.integers(0, 60)),  # cancelled at this iteration
)


@settings(max_examples=300, deadline=None)
@given(
    load=st.lists(REQUEST, min_size=1, max_size=12),
    spare=st.integers(0, 8),
    host_pages=st.integers(1, 24),
    slots=st.integers(1, 4),
    host_slots=st.integers(1, 5),
    layers=st.integers(1, 4),
    budget=st.integers(1, 40),
    seed=st.integers(0, 2**32),
    window=st.one_of(st.none(), st.integers(1, 20)),
)
def test_random_loads(load, spare, host_pages, slots, host_slots, layers, budget, seed, window):
    rng = random.Random(seed)
    load = sorted(load, key=lambda item: item[0])
    num_pages = max(pages_at_most(prompt + limit - 1, budget, window) for _, prompt, limit, _, _ in load) + spare
    scheduler = Scheduler(
        capacity(num_pages, host_pages, page=PAGE, rows=slots, host_rows=host_slots, prompt=budget, window=window),
        num_layers=layers,
        policy=Restless(rng, layers, host_slots),
    )
    requests = [
        Request(id=i, prompt=tuple(range(100 * i, 100 * i + prompt)), max_tokens=limit)
        for i, (_, prompt, limit, _, _) in enumerate(load)
    ]
    prompts = [r.prompt for r in requests]
    machine = Machine(layers, num_pages, host_pages, slots + host_slots, prompts, window)
    pending, alive, ended = deque(), {}, {}
    for iteration in range(20_000):
        for i, (arrival, *_, cancelled) in enumerate(load):
            if arrival == iteration:
                scheduler.add(requests[i])
                alive[i] = requests[i]
            if cancelled == iteration and i in alive:
                scheduler.finish(i)
                del alive[i]
        for number in list(machine.fetched):
            # They arrive in no particular iteration.
            if rng.random() < 0.6 and not scheduler.fetch_arrived(number):
                del machine.fetched[number]
        plan = scheduler.schedule()
        if plan is not None:
            check_plan(plan, scheduler, slots, host_slots)
            pending.append((plan, machine.run(plan)))
        if pending and (plan is None or len(pending) > 1):
            done, tokens = pending.popleft()
            for arrived, place in scheduler.update(done, tokens):
                assert arrived.output[-1] == tokens[place] == token_of(arrived.id, len(arrived.output) - 1)
                if len(arrived.output) == min(load[arrived.id][2:4]):
                    scheduler.finish(arrived.id)
                    ended[arrived.id] = alive.pop(arrived.id)
        elif plan is None:
            assert scheduler.is_fetching or not alive
        check_accounts(scheduler, alive.values())
        check_held(alive.values(), budget, window)
        if not alive and not pending and iteration > 30:
            break
    assert not alive
    assert not scheduler.has_unfinished
    assert scheduler.cohorts.num_under_way == 0
    assert scheduler.pages.free_ids() == list(range(num_pages))
    assert scheduler.host_pages.free_ids() == list(range(host_pages))
    assert sorted(scheduler.free_slots) == list(range(slots + host_slots))
    for i, request in ended.items():
        assert request.output == [token_of(i, step) for step in range(min(load[i][2:4]))]


def pages_at_most(length, budget, window):
    """Of a context: all, or the whole window in front of an iteration's whole pages of prompt, and these."""
    whole = -(-length // PAGE)
    return whole if window is None else min(whole, -(-(window - 1) // PAGE) + max(1, budget // PAGE))


def check_held(alive, budget, window):
    """Nobody holds more than a window needs: while decoding, no page that lies before it."""
    for r in alive:
        for pages in (r.pages, r.host_pages):
            assert len(pages) <= pages_at_most(len(r.prompt) + r.max_tokens - 1, budget, window)
            if window is not None and not r.is_prefilling:
                assert len(pages) <= -(-(window - 1) // PAGE) + 1


def check_plan(plan, scheduler, slots, host_slots):
    """Nobody rides twice, and both sides hold as many as they have places."""
    device = [item.slot for item in (*plan.prefill, *plan.decode)]
    host = [row.slot for cohort in plan.cohorts for row in cohort.rows if row is not None]
    assert len(set(device)) == len(device) <= slots
    assert len(set(host)) == len(host) <= host_slots
    assert not set(device) & set(host)
    assert scheduler.num_on_host <= host_slots
    assert all(move.request_id not in plan.sampling_requests for move in plan.fetches)


def check_accounts(scheduler, alive):
    """No page and no slot is held twice, and none is lost."""
    for table, held in (
        (scheduler.pages, [page for r in alive for page in r.pages]),
        (scheduler.host_pages, [page for r in alive for page in r.host_pages]),
    ):
        assert len(held) == len(set(held)) == table.num_pages - table.num_free
    taken = [r.slot for r in alive if r.slot is not None]
    assert len(taken) == len(set(taken)) == scheduler.num_running
    for r in alive:
        assert not r.host_pages or r.side == "host"
        assert r.cohort is None or (r.side == "host" and not r.fetching)
