"""No program over a layer's cache takes memory for another copy of it on a CPU, whatever the type."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from apex_jax.execution import paged_attention as device_attention
from apex_jax.execution.page_writes import replace_pages, write_tiles, write_tokens
from apex_jax.host_offload import native_library

PAGES, KV_HEADS, PAGE, WIDTH = 1024, 2, 16, 16
LENGTHS = jnp.array([3, 20], jnp.int32)
TABLE = jnp.array([[5, 1], [7, 9]], jnp.int32)


def random(*shape, dtype):
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), dtype)


@pytest.fixture(autouse=True)
def on_a_cpu():
    with jax.default_device(jax.devices("cpu")[0]):
        yield


@pytest.fixture(params=["float32", "bfloat16", "float16"])
def kv(request):
    return random(PAGES, KV_HEADS, 2, PAGE, WIDTH, dtype=request.param)


@pytest.fixture(params=["native", "plain"])
def writes(request, monkeypatch):
    if request.param == "plain":
        monkeypatch.setattr(native_library, "load", lambda: None)
    elif native_library.load() is None:
        pytest.skip("apex_jax was installed without a compiler")


def run(program, kv, *arguments):
    compiled = jax.jit(program, donate_argnums=0).lower(kv, *arguments).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < kv.nbytes // 8
    pointer = kv.unsafe_buffer_pointer()
    written = compiled(kv, *arguments)
    assert written.unsafe_buffer_pointer() == pointer
    return np.asarray(written)


def test_tiles_are_written(kv, writes):
    k, v = (random(3, PAGE, KV_HEADS, WIDTH, dtype="float32") + i for i in range(2))
    expected = np.array(kv)
    for tile, page in ((0, 4), (2, 1)):
        expected[page, :, 0] = k[tile].transpose(1, 0, 2).astype(kv.dtype)
        expected[page, :, 1] = v[tile].transpose(1, 0, 2).astype(kv.dtype)
    found = run(lambda kv, *rest: write_tiles(kv, *rest), kv, jnp.array([4, PAGES, 1], jnp.int32), k, v)
    np.testing.assert_array_equal(found, expected)


def test_pages_are_replaced(kv, writes):
    tiles = random(2, KV_HEADS, 2, PAGE, WIDTH, dtype=kv.dtype)
    expected = np.array(kv)
    expected[6] = tiles[1]
    found = run(lambda kv, *rest: replace_pages(kv, *rest), kv, jnp.array([PAGES + 3, 6], jnp.int32), tiles)
    np.testing.assert_array_equal(found, expected)


def test_tokens_are_written(kv):
    k, v = (random(2, KV_HEADS, WIDTH, dtype=kv.dtype) + i for i in range(2))
    expected = np.array(kv)
    for row, (page, offset) in enumerate(((5, 2), (9, 3))):
        expected[page, :, 0, offset], expected[page, :, 1, offset] = k[row], v[row]
    np.testing.assert_array_equal(run(write_tokens, kv, TABLE, LENGTHS, k, v), expected)


def test_attention_in_rounds_reads_pages_alone(kv, monkeypatch):
    monkeypatch.setattr(device_attention, "GATHERED_BYTES", 1)
    monkeypatch.setattr(device_attention, "LARGE_BLOCK", PAGE)
    monkeypatch.setattr(device_attention, "SMALL_BLOCK", PAGE)
    q = random(2, 4, WIDTH, dtype="float32")

    def decode(kv):
        return device_attention.decode_attention(q, kv, TABLE, LENGTHS)

    def prefill(kv):
        tiles = jnp.broadcast_to(q[:, None], (2, PAGE, 4, WIDTH))
        return device_attention.prefill_attention(tiles, kv, TABLE, jnp.zeros(2, jnp.int32), one_request=False)

    for program in (decode, prefill):
        compiled = jax.jit(program).lower(kv).compile()
        assert compiled.memory_analysis().temp_size_in_bytes < kv.nbytes // 8
