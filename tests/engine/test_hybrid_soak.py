"""A thousand requests over changing strategies: all end, and nothing stays behind on either side."""

import numpy as np

from apex_jax.scheduler import FixedPolicy

from .hybrid import HOST_ROWS, OPTIONS, Reference, Restless, check_empty, draw_load, run, settle, unsettle

HYBRID = ("layer_sync", "asymmetric_pipelining", "async_overlap", "fast_lane")


def test_a_thousand_requests(make, dense, config):
    """Ten budgets: some of the pages on either side are withheld, so that what is left is one size each time."""
    llm = make(**OPTIONS, strategy="async_overlap")
    reference = Reference(dense)
    rng = np.random.default_rng(12)
    cancelled = ended = 0
    for budget in range(10):
        scheduler = settle(llm)
        if budget % 2:
            scheduler.policy = Restless(rng, config.num_hidden_layers)
            unsettle(scheduler, rng, chance=0.1)
        else:
            strategy = HYBRID[budget // 2 % 3]
            scheduler.policy = FixedPolicy(
                strategy=strategy, num_cohorts=1 + budget % 4, max_host_requests=int(rng.integers(1, HOST_ROWS + 1))
            )
        # A prompt of 30 and 20 tokens need 4 pages on the device.
        withheld = scheduler.pages.allocate(int(rng.integers(5)))
        host_withheld = scheduler.host_pages.allocate(int(rng.integers(11)))
        load = draw_load(rng, 100, config.vocab_size, longest=30, most=20)
        jobs = run(llm, load, rng, arrive=float(rng.uniform(0.05, 0.6)), cancel=0.05, most=20_000)
        scheduler.pages.free(withheld)
        scheduler.host_pages.free(host_withheld)
        check_empty(llm)
        generations = [generation for job in jobs for generation in job.generations]
        assert not any(generation.host_error for generation in generations)
        reference.check(jobs[::5])
        aborted = sum(generation.stream.finish_reason == "abort" for generation in generations)
        cancelled, ended = cancelled + aborted, ended + len(generations) - aborted
    assert cancelled + ended >= 1000
    assert cancelled > 50
    stats = llm.stats()
    for name in ("host_tokens", "device_tokens", "evictions", "landings", "preemptions"):
        assert getattr(stats, name) > 50, name
