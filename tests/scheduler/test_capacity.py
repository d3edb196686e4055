"""Sizes are checked once, by name, and count in whole pages."""

from dataclasses import replace

import pytest

from .machines import capacity

SOME = capacity(10, 20, page=4, rows=3, host_rows=5, prompt=11)


def test_whole_pages():
    uneven = replace(SOME, device_kv_tokens=43, host_kv_tokens=3)
    assert (uneven.device_pages, uneven.longest, uneven.host_pages) == (10, 40, 0)
    assert (SOME.host_pages, SOME.max_prefill_pages, SOME.slots) == (20, 2, 8)
    # An iteration computes a page at least, or no prompt would ever end.
    assert replace(SOME, max_prefill_tokens=1).max_prefill_pages == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"device_kv_tokens": 3}, "device_kv_tokens is 3; a page alone holds 4"),
        ({"device_kv_tokens": 8.0}, "device_kv_tokens is 8.0; a whole number of at least 1 is needed"),
        ({"host_kv_tokens": -1}, "host_kv_tokens is -1; a whole number of at least 0 is needed"),
        ({"page_size": 0}, "page_size is 0; a whole number of at least 1 is needed"),
        ({"max_num_seqs": True}, "max_num_seqs is True; a whole number of at least 1 is needed"),
        ({"max_host_seqs": -2}, "max_host_seqs is -2; a whole number of at least 0 is needed"),
        ({"max_prefill_tokens": 0}, "max_prefill_tokens is 0; a whole number of at least 1 is needed"),
    ],
)
def test_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(SOME, **change)
