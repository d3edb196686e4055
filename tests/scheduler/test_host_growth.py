"""Host requests that grow where host pages run out."""

import pytest

from apex_jax.scheduler import FixedPolicy, Request, Scheduler

from .machines import capacity

PAGE = 4


def serve(scheduler, requests):
    """Run to the end with results one plan late; returns the plans."""
    for each in requests:
        scheduler.add(each)
    plans, pending, wanted = [], [], {each.id: each.max_tokens for each in requests}
    while scheduler.has_unfinished:
        for each in requests:
            if each.fetching:
                scheduler.fetch_arrived(each.id)
        plan = scheduler.schedule()
        if plan is not None:
            plans.append(plan)
            pending.append(plan)
        if pending and (plan is None or len(pending) > 1):
            done = pending.pop(0)
            for request, _ in scheduler.update(done, [7] * len(done.sampling_requests)):
                if len(request.output) == wanted[request.id]:
                    scheduler.finish(request.id)
    return plans


@pytest.mark.parametrize("strategy", ["layer_sync", "asymmetric_pipelining", "async_overlap", "fast_lane"])
@pytest.mark.parametrize("host_pages", [6, 9, 12])
def test_a_request_that_gave_its_pages_away_does_not_depart(strategy, host_pages):
    """Those that rest longest board first, so that one of them may be the youngest, who loses its pages to another."""
    scheduler = Scheduler(
        capacity(8, host_pages, page=PAGE, rows=2, host_rows=6, prompt=4 * PAGE),
        num_layers=3,
        policy=FixedPolicy(strategy=strategy, max_host_requests=6),
    )
    requests = [Request(id=number, prompt=(1,) * (3 + number % 3), max_tokens=20) for number in range(9)]
    plans = serve(scheduler, requests)
    assert all(request.steps == 20 for request in requests)
    assert scheduler.preemptions > 0
    assert scheduler.pages.num_free == 8
    assert scheduler.host_pages is not None
    assert scheduler.host_pages.num_free == host_pages
    for plan in plans:
        riding = [row.slot for cohort in plan.cohorts for row in cohort.rows if row is not None]
        assert len(set(riding)) == len(riding)
