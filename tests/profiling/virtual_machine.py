"""An executor in virtual time: its iterations take what a given profile says, to the last digit."""

from types import SimpleNamespace

from apex_jax.execution.batch import Buckets
from apex_jax.execution.executor import HostCounters
from apex_jax.scheduler import Capacity, CostModel, Load

PAGES = 96


class VirtualMachine:
    """Stands in for an `Executor`.

    Args:
        profile: what everything takes.
        max_num_seqs, max_host_seqs, pages, host_pages: sizes of the engine.
        tiles: pages of prompt tokens in an iteration; a context has 16 pages at most.
    """

    def __init__(self, profile, *, max_num_seqs=8, max_host_seqs=32, pages=PAGES, host_pages=PAGES, tiles=4):
        self.model = CostModel(profile)
        self.now = 0.0
        self.end = 0.0
        self.clock_state = None
        self.host = HostCounters()
        self.worker = SimpleNamespace(observers=[])
        self.capacity = Capacity(
            device_kv_tokens=pages * profile.page_size,
            host_kv_tokens=host_pages * profile.page_size,
            page_size=profile.page_size,
            max_num_seqs=max_num_seqs,
            max_host_seqs=max_host_seqs,
            max_prefill_tokens=tiles * profile.page_size,
        )
        self.buckets = Buckets(capacity=self.capacity, table_width=16, ragged_attention=True)
        self.device = SimpleNamespace(
            num_layers=profile.num_layers,
            assign_slot=lambda *args: None,
            head=self.head,
            fetch=lambda end, count: self.fetch(end),
        )
        self.slots = set()

    def clock(self):
        return self.now

    def reset(self):
        self.clock_state = None

    rest = reset

    def submit(self, plan):
        load = Load.of(plan, self.model.profile.page_size)
        self.check(plan)
        predicted, self.clock_state = self.model.predict(plan, self.clock_state)
        self.end = max(self.end, self.now) + predicted.iteration_s
        for cohort in load.cohorts:
            taken = round(1e9 * self.model.costs.host_attention(cohort.rows, cohort.kv_tokens))
            for _ in range(cohort.first, min(cohort.last + 1, plan.num_layers)):
                for observer in self.worker.observers:
                    observer(SimpleNamespace(kind="attend", fetched_ns=5, ended_ns=5 + taken))
        self.host.move_ns += round(1e9 * self.model.costs.migration(load.evicted_tokens))
        self.host.move_ns += round(1e9 * self.model.costs.migration(load.fetched_tokens))
        return self.end

    def fetch(self, submitted):
        self.now = max(self.now, submitted)

    def head(self, rows):
        assert rows in self.buckets.samples
        self.end = max(self.end, self.now) + self.model.costs.head(rows)
        return self.end

    def wait_for_fetch(self):
        pass

    def check(self, plan):
        """What a real executor would stumble over."""
        page, buckets = self.model.profile.page_size, self.buckets
        for change in (*plan.new_pages, *plan.new_host_pages):
            assert 0 <= change.slot < buckets.slots
            assert change.first + len(change.pages) <= buckets.table_width
            self.slots.add(change.slot)
        for change in plan.new_pages:
            assert all(0 <= page < self.capacity.device_pages for page in change.pages)
        for change in plan.new_host_pages:
            assert all(0 <= page < self.capacity.host_pages for page in change.pages)
        riding = [row for cohort in plan.cohorts for row in cohort.rows]
        assert len(plan.decode) <= self.capacity.max_num_seqs
        assert len(riding) <= self.capacity.max_host_seqs
        assert {row.slot for row in (*plan.decode, *riding)} <= self.slots
        assert max((row.length for row in (*plan.decode, *riding)), default=0) <= buckets.table_width * page
        assert plan.prefill_tokens <= self.capacity.max_prefill_tokens
        for move in (*plan.evictions, *plan.landings):
            assert all(0 <= page < self.capacity.device_pages for page in move.device_pages)
