"""Host pages: sizes, allocation, bulk moves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from apex_jax.host_offload import (
    HostKVCache,
    HostKVConfig,
    allocate,
    available_memory,
    native_library,
    read_pages,
    write_pages,
)

CONFIG = HostKVConfig(num_layers=2, num_kv_heads=3, head_width=64, page_size=16, dtype=jnp.float32)


def test_budget_decides_the_number_of_pages():
    assert CONFIG.page_bytes == 2 * 3 * 2 * 16 * 64 * 4
    cache = allocate(CONFIG, 5 * CONFIG.page_bytes + 100)
    assert cache.num_pages == 5
    assert [layer.shape for layer in cache.layers] == [(5, 3, 2, 16, 64)] * 2


def test_what_does_not_fit_is_refused_before_anything_runs():
    with pytest.raises(MemoryError, match="bytes are available"):
        allocate(CONFIG, 4 * available_memory())
    with pytest.raises(ValueError, match="less than one page"):
        allocate(CONFIG, CONFIG.page_bytes - 1)


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("num_layers", 0, ValueError),
        ("page_size", 48, ValueError),
        ("page_size", 64.0, TypeError),
        ("dtype", jnp.int8, TypeError),
        ("dtype", "foo", TypeError),
        ("dtype", None, TypeError),
    ],
)
def test_configuration_is_checked(field, value, error):
    fields = {"num_layers": 1, "num_kv_heads": 1, "head_width": 64} | {field: value}
    with pytest.raises(error, match=f"{field} is .*, (allowed are|it must be)"):
        HostKVConfig(**fields)


def test_a_cache_has_layers_and_a_device_is_one():
    with pytest.raises(ValueError, match=r"layers is \(\), it must hold"):
        HostKVCache(layers=())
    with pytest.raises(TypeError, match="device is 'cpu', it must be a CPU device of JAX"):
        allocate(CONFIG, CONFIG.page_bytes, "cpu")


@pytest.fixture
def library(request, monkeypatch):
    if request.param == "none":
        monkeypatch.setattr(native_library, "load", lambda: None)
    elif native_library.load() is None:
        pytest.skip("apex_jax was installed without a compiler")


libraries = pytest.mark.parametrize("library", ["native", "none"], indirect=True)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@libraries
def test_pages_move_in_bulk_and_in_place(library, dtype):
    rng = np.random.default_rng(0)
    kv = jnp.asarray(rng.standard_normal((512, 3, 2, 16, 64)), dtype)
    before, pointer = np.array(kv), kv.unsafe_buffer_pointer()
    ids = jnp.array([7, -1, 2], jnp.int32)
    tiles = read_pages(kv, ids)
    np.testing.assert_array_equal(tiles, np.stack([before[7], np.zeros_like(before[0]), before[2]]))

    new = rng.standard_normal((3, 3, 2, 16, 64)).astype(dtype)
    write = jax.jit(lambda *arguments: write_pages(*arguments), donate_argnums=0).lower(kv, ids, new).compile()
    assert write.memory_analysis().temp_size_in_bytes < kv.nbytes // 20
    kv = write(kv, ids, jnp.asarray(new))
    expected = before.copy()
    expected[[7, 2]] = new[[0, 2]]
    np.testing.assert_array_equal(kv, expected)
    assert kv.unsafe_buffer_pointer() == pointer


def test_pages_are_read_into_given_memory():
    rng = np.random.default_rng(0)
    kv = jnp.asarray(rng.standard_normal((9, 3, 2, 16, 64)), jnp.float32)
    into = jnp.full((3, 3, 2, 16, 64), 7.0)
    pointer = into.unsafe_buffer_pointer()
    tiles = jax.jit(read_pages, donate_argnums=2)(kv, jnp.array([7, -1, 2], jnp.int32), into)
    np.testing.assert_array_equal(tiles, np.stack([kv[7], np.zeros_like(kv[0]), kv[2]]))
    if native_library.load() is not None:
        assert tiles.unsafe_buffer_pointer() == pointer
    with pytest.raises(ValueError, match="into is float32"):
        read_pages(kv, jnp.array([1], jnp.int32), jnp.zeros((2, 3, 2, 16, 64)))


def test_pages_and_tiles_must_fit():
    kv = jnp.zeros((4, 3, 2, 16, 64))
    with pytest.raises(ValueError, match="tiles are"):
        write_pages(kv, jnp.array([1], jnp.int32), jnp.zeros((2, 3, 2, 16, 64)))
    ids = jnp.array([1], jnp.int32)
    with pytest.raises(TypeError, match="pages has type float32, it must be int32"):
        read_pages(kv, jnp.array([1.0]))
    for move in (read_pages, lambda kv, ids: write_pages(kv, ids, kv[:1])):
        with pytest.raises(TypeError, match="kv has type int32"):
            move(kv.astype(jnp.int32), ids)
        with pytest.raises(ValueError, match="the page size of kv is 8"):
            move(kv[:, :, :, :8], ids)
        with pytest.raises(ValueError, match=r"kv has shape \(0, 3, 2, 16, 64\), .* at least one page"):
            move(kv[:0], ids)
        with pytest.raises(ValueError, match="kv has shape"):
            move(kv[:, :, :1], ids)
        with pytest.raises(ValueError, match="kv and pages have shapes"):
            move(kv, ids[None])


@libraries
def test_moves_under_vmap(library):
    rng = np.random.default_rng(0)
    kv, tiles = (jnp.asarray(rng.standard_normal((n, 3, 2, 16, 64)), jnp.float32) for n in (5, 2))
    ids = jnp.array([[3, -1], [0, 4]], jnp.int32)
    read = jax.vmap(read_pages, (None, 0))(kv, ids)
    into = jax.jit(jax.vmap(read_pages, (None, 0, 0)), donate_argnums=2)(kv, ids, jnp.ones_like(read))
    written = jax.vmap(write_pages, (None, 0, None))(kv, ids, tiles)
    expected = np.stack([np.stack([kv[3], np.zeros_like(kv[0])]), np.stack([kv[0], kv[4]])])
    np.testing.assert_array_equal(read, expected)
    np.testing.assert_array_equal(into, expected)
    for i, pages in enumerate(ids):
        new = np.array(kv)
        for page, tile in zip(pages, tiles, strict=True):
            if page >= 0:
                new[page] = tile
        np.testing.assert_array_equal(written[i], new)


@pytest.mark.skipif(native_library.load() is None, reason="apex_jax was installed without a compiler")
def test_native_moves_have_no_derivative():
    kv, ids = jnp.zeros((4, 3, 2, 16, 64)), jnp.array([1, 2], jnp.int32)
    for move in (read_pages, lambda kv, ids: read_pages(kv, ids, kv[:2]), lambda kv, ids: write_pages(kv, ids, kv[:2])):
        with pytest.raises(NotImplementedError, match="moves of pages cannot be differentiated: index the array"):
            jax.grad(lambda kv, move=move: move(kv, ids).sum())(kv)


@pytest.mark.skipif(native_library.load() is None, reason="apex_jax was installed without a compiler")
def test_native_moves_name_themselves_and_the_page():
    kv, ids = jnp.zeros((4, 3, 2, 16, 64)), jnp.array([1, 4], jnp.int32)
    with pytest.raises(
        (jax.errors.JaxRuntimeError, ValueError), match=r"read_pages: page id 4 .* allowed are ids below 4"
    ):
        jax.block_until_ready(read_pages(kv, ids))
    with pytest.raises((jax.errors.JaxRuntimeError, ValueError), match="write_pages: page id 4"):
        jax.block_until_ready(write_pages(kv, ids, kv[:2]))


def test_a_budget_is_whole_bytes():
    with pytest.raises(TypeError, match=r"budget_bytes is 1000000000\.0"):
        allocate(CONFIG, 1e9)
