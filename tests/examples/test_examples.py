"""The examples run, and show what they say."""

import json
import runpy
from pathlib import Path

import jax

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_rollouts_of_an_nnx_model_earn_more():
    # As programs have it: optax counts on promotion.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        rewards = runpy.run_path(str(EXAMPLES / "rollouts_nnx.py"))["main"]()
    assert rewards[-1] > rewards[0] + 0.2


def test_the_notebook():
    notebook = json.loads((EXAMPLES / "quickstart.ipynb").read_text(encoding="utf-8"))
    scope: dict = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), scope)
    before, after = ([r.outputs[0].token_ids for r in scope[name]] for name in ("results", "changed"))
    assert len(before) == len(after) == 24
    assert before != after
