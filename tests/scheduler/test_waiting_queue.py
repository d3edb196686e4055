"""The requests that wait: their order, and sums that hold whatever comes and goes."""

from hypothesis import given, settings
from hypothesis import strategies as st

from apex_jax.scheduler import Request
from apex_jax.scheduler.waiting_queue import WaitingQueue


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 10**6)), max_size=60))
def test_a_list_that_is_sorted_anew(changes):
    """Newcomers, the first that leaves and comes back later, and anybody who is aborted, beside a plain list."""
    queue, plain, gone, number = WaitingQueue(), [], [], 0
    for comes, chosen in changes:
        if comes and gone and chosen % 3 == 0:
            request = gone.pop(chosen % len(gone))
            request.output.append(7)
        elif comes or not plain:
            request = Request(id=number, prompt=(1,) * (1 + chosen % 9), max_tokens=20 + chosen % 5)
            number += 1 + chosen % 2
        else:
            request = plain.pop(0 if chosen % 2 else chosen % len(plain))
            queue.remove(request)
            if chosen % 2 and len(request.output) < 19:
                gone.append(request)
            request = None
        if request is not None:
            queue.add(request)
            plain = sorted([*plain, request], key=lambda each: each.id)
        assert list(queue) == plain
        assert queue.first is (plain[0] if plain else None)
        assert len(queue) == len(plain)
        assert queue.tokens == sum(each.length for each in plain)
        assert queue.output == sum(each.max_tokens - each.steps for each in plain)
