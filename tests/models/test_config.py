"""Configurations: transformers' defaults, refusals by name, and the published sizes of the presets."""

import jax
import pytest

from apex_jax.models import PRESETS, LlamaConfig, abstract_weights, preset

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
}

# Parameter counts as published on the models' pages (or summed from their checkpoints' index files).
PUBLISHED = {
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "tinyllama-1.1b": 1_100_048_384,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
}


def test_absent_entries_take_transformers_defaults():
    from transformers import LlamaConfig as TheirConfig

    theirs, ours = TheirConfig(**SMALL), LlamaConfig.from_hf(SMALL)
    assert ours.num_key_value_heads == theirs.num_key_value_heads
    assert ours.head_dim == theirs.head_dim
    assert ours.rms_norm_eps == theirs.rms_norm_eps
    assert ours.max_position_embeddings == theirs.max_position_embeddings
    assert (ours.tie_word_embeddings, ours.attention_bias, ours.mlp_bias) == (False, False, False)
    assert (ours.bos_token_id, ours.eos_token_ids) == (theirs.bos_token_id, (theirs.eos_token_id,))


def test_everything_transformers_writes_is_known():
    from transformers import LlamaConfig as TheirConfig

    written = TheirConfig(**SMALL, num_key_value_heads=2, tie_word_embeddings=True).to_dict()
    assert LlamaConfig.from_hf(written).num_key_value_heads == 2


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        ({"clip_qkv": 8.0}, "clip_qkv = 8.0 is unknown"),
        ({"model_type": "qwen3"}, "model_type = 'qwen3', only 'llama' is implemented"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu', only 'silu'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"rope_interleaved": True}, "rope_interleaved = True"),
        ({"sliding_window": 1024}, "sliding_window = 1024, only None, or a window of all positions"),
        (
            {"sliding_window": 1024, "max_position_embeddings": 2048, "use_sliding_window": True},
            "sliding_window = 1024",
        ),
        ({"layer_types": ["sliding_attention"]}, r"layer_types = \['sliding_attention'\], only 'full_attention'"),
        ({"layer_types": [{}]}, "layer_types = "),
        ({"layer_types": "full_attention"}, "layer_types = 'full_attention'"),
        ({"auto_map": {"AutoModelForCausalLM": "modeling_mine.MineForCausalLM"}}, "auto_map = "),
        ({"auto_map": ["modeling.LlamaForCausalLM"]}, "auto_map = "),
        ({"auto_map": {"AutoModel": None}}, "auto_map = "),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads = "),
        ({"use_qk_norm": True}, "use_qk_norm = True, only False"),
        ({"rope_scaling": {"rope_type": "default", "factor": 2.0}}, "RoPE type 'default' has no setting factor"),
        ({"num_key_value_heads": 3}, "must divide num_attention_heads=4, got 3"),
        ({"num_key_value_heads": 0}, "num_key_value_heads must be a positive integer, got 0"),
        ({"num_key_value_heads": "2"}, "num_key_value_heads must be a positive integer, got '2'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be a positive integer, got 0"),
        ({"num_hidden_layers": True}, "num_hidden_layers must be a positive integer, got True"),
        ({"hidden_size": "32"}, "hidden_size must be a positive integer, got '32'"),
        ({"hidden_size": [32]}, r"hidden_size must be a positive integer, got \[32\]"),
        ({"num_attention_heads": 4.0}, "num_attention_heads must be a positive integer, got 4.0"),
        ({"num_attention_heads": {}}, "num_attention_heads must be a positive integer, got {}"),
        ({"num_attention_heads": 0}, "num_attention_heads must be a positive integer, got 0"),
        ({"head_dim": 0}, "head_dim must be a positive integer, got 0"),
        ({"head_dim": 8.0}, "head_dim must be a positive integer, got 8.0"),
        ({"max_position_embeddings": "2048"}, "max_position_embeddings must be a positive integer, got '2048'"),
        ({"max_position_embeddings": float("inf")}, "max_position_embeddings must be a positive integer, got inf"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings must be true or false, got 'false'"),
        ({"attention_bias": 1}, "attention_bias must be true or false, got 1"),
        ({"mlp_bias": [True]}, r"mlp_bias must be true or false, got \[True\]"),
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps must be a finite positive number, got '1e-5'"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps must be a finite positive number, got nan"),
        ({"bos_token_id": "1"}, "bos_token_id must be an integer of at least 0, got '1'"),
        ({"bos_token_id": True}, "bos_token_id must be an integer of at least 0, got True"),
        ({"eos_token_id": 2.0}, "eos_token_id must be an integer of at least 0, got 2.0"),
        ({"eos_token_id": "</s>"}, "eos_token_id must be an integer of at least 0, got '</s>'"),
        ({"eos_token_id": [2, None]}, "every id of eos_token_id must be an integer of at least 0, got None"),
        ({"model_type": ["llama"]}, r"model_type = \['llama'\], only 'llama'"),
        ({"vocab_size": 64.0}, "vocab_size must be a positive integer, got 64.0"),
        ({"head_dim": 7}, "head_dim must be even for RoPE, got 7"),
        ({"rms_norm_eps": 0.0}, "rms_norm_eps must be a finite positive number, got 0.0"),
        ({"eos_token_id": [2, 64]}, "token id 64 lies outside"),
        ({"hidden_size": None}, "lacks hidden_size"),
        ({"num_attention_heads": 5}, "hidden_size 32 is no multiple of num_attention_heads 5"),
    ],
)
def test_refusals_name_the_entry(entry, complaint):
    with pytest.raises(ValueError, match=complaint):
        LlamaConfig.from_hf(SMALL | entry)


@pytest.mark.parametrize("config", [[], "llama", None, 3])
def test_a_configuration_is_a_mapping(config):
    with pytest.raises(ValueError, match="the model configuration must be a mapping, got"):
        LlamaConfig.from_hf(config)


NOTHING = [
    {"sliding_window": 4096, "use_sliding_window": False, "max_window_layers": 28},
    {"sliding_window": 2048, "max_position_embeddings": 2048},
    {"use_sliding_window": True, "sliding_window": None},
    {"layer_types": ["full_attention"]},
    {"auto_map": {"AutoTokenizer": ["tokenization_mine.MineTokenizer", None]}},
    {"quantization_config": {}, "quantization": None, "rope_scaling": {}, "rope_parameters": {}, "pruned_heads": {}},
    {"rope_scaling": {"rope_type": "default", "factor": 1.0}},
    {"rope_scaling": {"type": None}},
    {"something_new": None, "compression_config": {}, "skipped_layers": []},
    {"gradient_checkpointing": True, "neftune_noise_alpha": 5, "unsloth_version": "2025.1", "embd_pdrop": 0.1},
]


@pytest.mark.parametrize("entries", NOTHING, ids=str)
def test_what_asks_for_nothing_changes_nothing(entries):
    assert LlamaConfig.from_hf(SMALL | entries) == LlamaConfig.from_hf(SMALL)


def test_code_of_a_plain_llama_is_ignored_and_its_yarn_is_read():
    """As published beside contexts that were lengthened before transformers knew how."""
    code = {"AutoConfig": "configuration_llama.LlamaConfig", "AutoModelForCausalLM": "modeling_yarn.LlamaForCausalLM"}
    scaling = {"type": "yarn", "factor": 16.0, "original_max_position_embeddings": 4096, "finetuned": True}
    config = LlamaConfig.from_hf(SMALL | {"auto_map": code, "rope_scaling": scaling})
    assert (config.rope.rope_type, config.rope.factor) == ("yarn", 16.0)


def test_null_is_absent():
    absent = dict.fromkeys(
        ("num_key_value_heads", "head_dim", "rms_norm_eps", "max_position_embeddings", "rope_scaling", "attention_bias")
    )
    assert LlamaConfig.from_hf(SMALL | absent) == LlamaConfig.from_hf(SMALL)
    without = LlamaConfig.from_hf(SMALL | {"bos_token_id": None, "eos_token_id": None})
    assert (without.bos_token_id, without.eos_token_ids) == (None, ())


def test_a_configuration_by_hand_is_checked_and_hashable():
    config = LlamaConfig.from_hf(SMALL)
    assert hash(config.replace(eos_token_ids=[2, 3])) == hash(config.replace(eos_token_ids=(2, 3)))
    with pytest.raises(ValueError, match="rope must be a RopeConfig, got None"):
        config.replace(rope=None)
    with pytest.raises(ValueError, match="rms_norm_eps must be a finite positive number, got None"):
        config.replace(rms_norm_eps=None)


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_have_the_published_size(name):
    config = preset(name)
    assert config.num_parameters == PUBLISHED[name]
    described = jax.tree.leaves(abstract_weights(config, "bfloat16"))
    assert sum(leaf.size for leaf in described) == PUBLISHED[name]


def test_every_preset_is_checked():
    assert set(PUBLISHED) == set(PRESETS)


def test_preset_with_other_layers_and_unknown_preset():
    assert preset("llama-3.1-70b", num_layers=3).num_hidden_layers == 3
    with pytest.raises(ValueError, match=r"unknown preset 'llama-4'; presets: llama-2-7b"):
        preset("llama-4")


def test_biases_are_counted():
    config = LlamaConfig.from_hf(SMALL | {"attention_bias": True, "mlp_bias": True})
    described = jax.tree.leaves(abstract_weights(config, "float32"))
    assert sum(leaf.size for leaf in described) == config.num_parameters


def test_transformers_own_object():
    from transformers import LlamaConfig as TheirConfig

    sizes = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    theirs = TheirConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, rms_norm_eps=1e-4, eos_token_id=[3, 4])
    found = LlamaConfig.from_hf(theirs)
    assert found == LlamaConfig.from_hf(theirs.to_dict())
    assert (found.hidden_size, found.num_key_value_heads, found.head_dim) == (32, 2, 8)
    assert (found.rms_norm_eps, found.eos_token_ids) == (1e-4, (3, 4))
