"""Strictness for every test: no silent broadcasting of ranks, no silent promotion of number types."""

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
