"""Options as users of other engines, and fingers, write them."""

import pytest

from apex_jax import LLM, LlamaConfig
from apex_jax.option_names import ASKS_FOR_NOTHING, engine_options
from apex_jax.options import EngineOptions

CALLER = {"caller": "LLM", "others": ("dtype",)}


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        (
            "gpu_memory_utilization",
            0.9,
            "LLM has no option 'gpu_memory_utilization' (it is 0.9); here that is memory_fraction",
        ),
        ("block_size", 16, "LLM has no option 'block_size' (it is 16); here that is page_size"),
        ("swap_space", 4, "LLM has no option 'swap_space' (it is 4); here that is host_kv_bytes, in bytes"),
        ("cpu_offload_gb", 4, "LLM has no option 'cpu_offload_gb' (it is 4); here that is host_kv_bytes, in bytes"),
        ("tensor_parallel_size", 2, "(it is 2); of what it means elsewhere only 1 is done here"),
        ("quantization", "awq", "(it is 'awq'); of what it means elsewhere only None is done here"),
        ("trust_remote_code", True, "(it is True); of what it means elsewhere only False is done here"),
        ("max_num_seq", 4, "LLM has no option 'max_num_seq' (it is 4); did you mean max_num_seqs?"),
        ("dtyp", "float32", "LLM has no option 'dtyp' (it is 'float32'); did you mean dtype?"),
        (
            "colour",
            "red",
            "LLM has no option 'colour' (it is 'red'); there are auto_profile, compilation_cache, device,",
        ),
    ],
)
def test_names_that_are_near_are_told(name, value, said):
    with pytest.raises(TypeError) as error:
        engine_options({name: value}, **CALLER)
    assert said in str(error.value)
    assert "EngineOptions" not in str(error.value)


def test_what_asks_for_nothing_is_accepted():
    for name, values in ASKS_FOR_NOTHING.items():
        for value in values:
            assert engine_options({name: value, "max_num_seqs": 3}, **CALLER) == EngineOptions(max_num_seqs=3)


def test_the_class_is_the_one_that_was_called():
    """Before the model is looked for."""
    with pytest.raises(TypeError, match=r"^LLM has no option 'gpu_memory_utilization'"):
        LLM("/nowhere", gpu_memory_utilization=0.5)
    with pytest.raises(TypeError, match=r"^LLM\.from_params has no option 'block_size'"):
        LLM.from_params(LlamaConfig, {}, block_size=16)
