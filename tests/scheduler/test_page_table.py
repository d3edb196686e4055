"""Page accounting against a plain set of free ids."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apex_jax.scheduler import OutOfPages, PageAllocator


def runs(pages):
    """Count the runs of consecutive ids."""
    return sum(1 for i, page in enumerate(pages) if i == 0 or page != pages[i - 1] + 1)


@given(
    num_pages=st.integers(1, 40),
    actions=st.lists(st.tuples(st.booleans(), st.integers(0, 12), st.integers(0, 1000)), max_size=60),
)
def test_no_page_is_handed_out_twice_or_lost(num_pages, actions):
    table = PageAllocator(num_pages, 16)
    free = set(range(num_pages))
    owners = []
    for grow, count, choice in actions:
        if owners and choice % 3 == 0:
            pages = owners.pop(choice % len(owners))
            table.free(reversed(pages))
            free |= set(pages)
        else:
            owner = owners[choice % len(owners)] if grow and owners else []
            after = owner[-1] if owner else None
            if count > len(free):
                with pytest.raises(OutOfPages, match=f"{count} pages wanted, {len(free)} of {num_pages}"):
                    table.allocate(count, after)
            else:
                taken = table.allocate(count, after)
                assert len(taken) == len(set(taken)) == count
                assert set(taken) <= free
                if count and after is not None and after + 1 in free:
                    assert taken[0] == after + 1
                free -= set(taken)
                owner += taken
                if owner not in owners and owner:
                    owners.append(owner)
        assert table.num_free == len(free)
        assert table.free_ids() == sorted(free)


@given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=12), count=st.integers(1, 30))
def test_one_run_if_any_is_long_enough_and_else_few(sizes, count):
    """Free runs of the given sizes, parted by one page that stays taken."""
    table = PageAllocator(sum(sizes) + len(sizes), 1)
    everything = table.allocate(table.num_pages)
    first, freed = 0, []
    for size in sizes:
        freed += everything[first : first + size]
        first += size + 1
    table.free(freed)
    if count > sum(sizes):
        return
    taken = table.allocate(count)
    needed, left = 0, count
    for size in sorted(sizes, reverse=True):
        if left <= 0:
            break
        needed, left = needed + 1, left - size
    assert runs(sorted(taken)) == needed


def test_a_growing_owner_stays_in_one_run_beside_others():
    table = PageAllocator(64, 16)
    first, second = table.allocate(4), table.allocate(4)
    for _ in range(8):
        first += table.allocate(1, after=first[-1])
        second += table.allocate(1, after=second[-1])
    assert runs(first) == runs(second) == 1


def test_freed_neighbours_become_one_run():
    table = PageAllocator(12, 16)
    parts = [table.allocate(4) for _ in range(3)]
    for i in (0, 2, 1):
        table.free(parts[i])
    assert table.allocate(12) == list(range(12))


@pytest.mark.parametrize("pages", [[2], [0, 2], [3, 3]])
def test_a_page_freed_twice_is_refused(pages):
    table = PageAllocator(5, 16)
    table.allocate(5)
    table.free([2])
    with pytest.raises(ValueError, match=rf"page {2 if 2 in pages else 3} is freed twice"):
        table.free(pages)


@pytest.mark.parametrize("pages", [[-1], [4, 5], [7]])
def test_a_page_outside_the_pool_is_refused(pages):
    table = PageAllocator(5, 16)
    table.allocate(5)
    with pytest.raises(ValueError, match=r"are not all in 0\.\.4"):
        table.free(pages)


def test_a_pool_may_have_no_pages():
    table = PageAllocator(0, 16)
    assert table.allocate(0) == table.free_ids() == []
    with pytest.raises(OutOfPages, match="1 pages wanted, 0 of 0 are free"):
        table.allocate(1)


def test_pages_for_rounds_up():
    table = PageAllocator(5, 16)
    assert [table.pages_for(tokens) for tokens in (0, 1, 16, 17, 32)] == [0, 1, 1, 2, 2]


@pytest.mark.parametrize(("num_pages", "page_size"), [(-1, 16), (-3, 16), (4, 0), (4, -1)])
def test_sizes_are_checked(num_pages, page_size):
    with pytest.raises(ValueError, match=f"is {num_pages if num_pages < 1 else page_size};"):
        PageAllocator(num_pages, page_size)
