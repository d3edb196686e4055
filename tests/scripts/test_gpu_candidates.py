"""Ways of decode attention that are compared on GPUs, against float64; cells that belong to nobody hold NaN."""

import functools
import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

FILE = Path(__file__).parents[2] / "benchmarks" / "gpu" / "candidates.py"
SPEC = importlib.util.spec_from_file_location("candidates", FILE)
candidates = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(candidates)

PAGES, WIDTH, SIZE, HEAD = 24, 6, 16, 32
LENGTHS = (83, 0, 16, 96)
TOLERANCE = {"float32": 2e-6, "bfloat16": 2e-2}


def problem(heads, kv_heads, dtype):
    rng = np.random.default_rng(8)
    kv = np.full((PAGES, kv_heads, 2, SIZE, HEAD), np.nan, jnp.dtype(dtype))
    table = rng.permutation(PAGES).reshape(len(LENGTHS), WIDTH).astype(np.int32)
    for row, length in enumerate(LENGTHS):
        for position in range(length):
            kv[table[row, position // SIZE], :, :, position % SIZE] = rng.normal(size=(kv_heads, 2, HEAD))
    q = rng.normal(size=(len(LENGTHS), heads, HEAD)).astype(jnp.dtype(dtype))
    return q, kv, table, np.array(LENGTHS, np.int32)


@pytest.mark.parametrize(("heads", "kv_heads", "dtype"), [(8, 2, "float32"), (4, 4, "float32"), (8, 2, "bfloat16")])
@pytest.mark.parametrize("name", [name for name in candidates.CANDIDATES if "cudnn" not in name])
def test_candidates_give_the_same_attention(name, heads, kv_heads, dtype):
    q, kv, table, lengths = problem(heads, kv_heads, dtype)
    attend = candidates.CANDIDATES[name]
    if attend is candidates.kernel:
        attend = functools.partial(attend, interpret=True)
    # JAX's own attention relies on promotion.
    with jax.numpy_dtype_promotion("standard"):
        found = np.asarray(jax.jit(attend)(q, kv, table, lengths)).astype(np.float64)
    for row, length in enumerate(LENGTHS):
        if not length:
            continue
        tiles = kv[table[row]].astype(np.float64)
        keys, values = (tiles[:, :, part].swapaxes(0, 1).reshape(kv_heads, -1, HEAD)[:, :length] for part in (0, 1))
        scores = np.einsum("KGH,KSH->KGS", q[row].astype(np.float64).reshape(kv_heads, -1, HEAD), keys) / np.sqrt(HEAD)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        expected = np.einsum("KGS,KSH->KGH", weights / weights.sum(-1, keepdims=True), values)
        np.testing.assert_allclose(found[row], expected.reshape(heads, HEAD), atol=TOLERANCE[dtype], rtol=0)


@pytest.mark.skipif(jax.__version_info__ >= (0, 11), reason="JAX 0.11 lowers to Triton only where a GPU is")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_kernel_lowers_to_triton(dtype):
    traced = jax.jit(candidates.kernel).trace(*problem(8, 2, dtype))
    assert "paged_decode_attention" in traced.lower(lowering_platforms=("cuda",)).as_text()
