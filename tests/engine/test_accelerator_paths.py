"""What accelerators run in the place of a CPU's own ways, run on a CPU."""

import dataclasses

import numpy as np
import pytest

import apex_jax.execution.programs
from apex_jax import SamplingParams
from apex_jax.execution.batch import Buckets, PageTables, pack_rows, pack_tiles, table_width
from apex_jax.execution.paged_attention import decode_in_place, prefill_over_the_table
from apex_jax.scheduler import Capacity, DecodeRow, NewPages, PrefillChunk

PAGE_SIZE = 16


def test_page_tables_are_as_wide_as_the_longest_context_of_an_iteration():
    capacity = Capacity(
        device_kv_tokens=99 * PAGE_SIZE, page_size=PAGE_SIZE, max_num_seqs=4, max_prefill_tokens=4 * PAGE_SIZE
    )
    buckets = Buckets(capacity=capacity, table_width=40, ragged_attention=False)
    assert buckets.table_widths == (4, 16, 40)
    tables = PageTables(buckets)
    tables.apply([NewPages(slot=1, first=0, pages=tuple(range(10, 30))), NewPages(slot=2, first=0, pages=(7, 3))])

    def row(length):
        return DecodeRow(request_id=0, slot=2, length=length, step=1)

    def chunk(start, tokens):
        return PrefillChunk(request_id=1, slot=1, start=start, tokens=(5,) * tokens, samples=False, step=0)

    assert table_width([], [], buckets) == 4
    assert table_width([row(64)], [], buckets) == 4
    assert table_width([row(65)], [], buckets) == 16
    assert table_width([row(3)], [chunk(240, 16)], buckets) == 16
    assert table_width([row(3)], [chunk(240, 17)], buckets) == 40
    rows = pack_rows([row(17)], tables, buckets, sizes=(1, 4), width=4)
    np.testing.assert_array_equal(rows, [[2, 17, 7, 3, 0, 0]])
    tiles = pack_tiles([chunk(32, 20)], tables, buckets, width=4)
    assert tiles.shape == (2, 2 + PAGE_SIZE + 4)
    np.testing.assert_array_equal(tiles[:, :2], [[32, 12], [48, 13]])
    np.testing.assert_array_equal(tiles[:, -4:], [[10, 11, 12, 13]] * 2)


@pytest.mark.parametrize("batched", [32, 64])
def test_prefill_over_the_table_gives_the_tokens_of_the_plain_model(batched, make, config, greedy, monkeypatch):
    """Prompts in one chunk, in several, and several prompts in one iteration, beside rows that decode."""
    monkeypatch.setattr(apex_jax.execution.programs, "prefill_attention", prefill_over_the_table)
    # A configuration of its own, since engines of one share their compiled programs.
    llm = make("xla", config=dataclasses.replace(config, max_position_embeddings=248), max_num_batched_tokens=batched)
    rng = np.random.default_rng(6)
    prompts = [rng.integers(0, config.vocab_size, length).tolist() for length in (100, 5, 16, 33, 7)]
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    found = [result.outputs[0].token_ids for result in llm.generate(prompts, params, use_tqdm=False)]
    assert found == [greedy(prompt, 12) for prompt in prompts]


def test_decode_in_place_gives_the_tokens_of_the_plain_model(make, config, greedy, monkeypatch):
    """Rows of several lengths, alone and beside a prefill."""
    monkeypatch.setattr("apex_jax.execution.paged_attention.decode_attention", decode_in_place)
    llm = make("xla", config=dataclasses.replace(config, max_position_embeddings=247), max_num_batched_tokens=32)
    rng = np.random.default_rng(7)
    prompts = [rng.integers(0, config.vocab_size, length).tolist() for length in (90, 3, 17)]
    params = SamplingParams(temperature=0, max_tokens=10, ignore_eos=True)
    found = [result.outputs[0].token_ids for result in llm.generate(prompts, params, use_tqdm=False)]
    assert found == [greedy(prompt, 10) for prompt in prompts]
