"""What a LLaMA model is: its sizes and settings, read from a Hugging Face `config.json` or given by hand."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from ..files.bounded_json import cut, listed, shown
from .loading import checks
from .rope import RopeConfig

MOST_LAYERS = 10_000
"""Far beyond any model; each has a dozen tensors that are looked for by name."""

_REQUIRED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")

_READ_BY_ROPE = (
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "partial_rotary_factor",
    "original_max_position_embeddings",
)

# Attributes whose other values change the computation and are not implemented.
_FIXED: dict[str, tuple[Any, ...]] = {
    "model_type": ("llama",),
    "hidden_act": ("silu", "swish"),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "is_decoder": (True, False),
    "chunk_size_feed_forward": (0,),
    "rope_interleaved": (False, None),
    "use_qk_norm": (False, None),
    "qk_layernorm": (False, None),
    "no_rope_layers": (None, []),
}

# Attributes that training, saving or other programs use; inference gives the same logits whatever they say.
_IRRELEVANT = frozenset(
    """
    _name_or_path _commit_hash _attn_implementation _attn_implementation_autoset attn_implementation
    _flash_attn_2_enabled architectures torch_dtype dtype transformers_version transformers.js_config unsloth_version
    unsloth_fixed use_cache initializer_range attention_dropout pretraining_tp pad_token_id sep_token_id
    decoder_start_token_id id2label label2id num_labels problem_type finetuning_task task_specific_params
    output_attentions output_hidden_states output_scores return_dict return_dict_in_generate torchscript
    use_bfloat16 tf_legacy_loss tie_encoder_decoder cross_attention_hidden_size tokenizer_class prefix
    is_llama_config max_sequence_length bad_words_ids begin_suppress_tokens suppress_tokens diversity_penalty do_sample
    early_stopping encoder_no_repeat_ngram_size exponential_decay_length_penalty forced_bos_token_id
    forced_eos_token_id length_penalty max_length min_length no_repeat_ngram_size num_beam_groups num_beams
    num_return_sequences remove_invalid_values repetition_penalty temperature top_k top_p typical_p
    tie_last_hidden_states max_window_layers gradient_checkpointing use_reentrant model_max_length neftune_noise_alpha
    _attn_implementation_internal experts_implementation unsloth_tied_weights resid_pdrop embd_pdrop attn_pdrop
    hidden_dropout embedding_dropout mlp_dropout classifier_dropout tokenizer_model_max_length tokenizer_padding_side
    """.split()  # noqa: SIM905 a list of eighty quoted words would hide what is in it
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """Sizes and settings of a LLaMA decoder; hashable, so that it can be a static argument of a compiled function.

    Args:
        vocab_size: V, tokens in the vocabulary.
        hidden_size: D, width of the residual stream.
        intermediate_size: F, width inside the feed-forward block.
        num_hidden_layers: L.
        num_attention_heads: N query heads.
        num_key_value_heads: K key/value heads; divides N.
        head_dim: H, even; N * H need not equal D.
        rms_norm_eps: added to the mean square inside RMSNorm.
        rope: how positions enter.
        max_position_embeddings: longest sequence, in tokens.
        sliding_window: each token attends to so many at most, itself and those before it, in every layer (Mistral 7B,
            arXiv 2310.06825); None for all.
        tie_word_embeddings: the output head is the embedding matrix.
        attention_bias: biases on the query, key, value and output projections.
        mlp_bias: biases on the three feed-forward projections.
        bos_token_id: begins a sequence; None where the model has no such token.
        eos_token_ids: any of them ends a generation.

    Raises:
        ValueError: a value of the wrong type, a size below 1 or beyond int32, more layers than `MOST_LAYERS`, heads
            that do not divide, an odd H, or a token id outside of V.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float = 1e-5
    rope: RopeConfig = dataclasses.field(default_factory=RopeConfig)
    max_position_embeddings: int = 2048
    sliding_window: int | None = None
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    def __post_init__(self):
        for name in (*_REQUIRED, "num_key_value_heads", "head_dim", "max_position_embeddings"):
            checks.integer(name, getattr(self, name))
        checks.integer("num_hidden_layers", self.num_hidden_layers, most=MOST_LAYERS)
        if self.sliding_window is not None:
            checks.integer("sliding_window", self.sliding_window)
        for name in ("tie_word_embeddings", "attention_bias", "mlp_bias"):
            checks.truth(name, getattr(self, name))
        checks.number("rms_norm_eps", self.rms_norm_eps)
        if not isinstance(self.rope, RopeConfig):
            raise ValueError(f"rope must be a RopeConfig, got {shown(self.rope)}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_key_value_heads must divide num_attention_heads={self.num_attention_heads}, "
                f"got {self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even for RoPE, got {self.head_dim}")
        if self.rope.frequency_factors and len(self.rope.frequency_factors) != self.head_dim // 2:
            raise ValueError(
                f"RoPE needs head_dim / 2 = {self.head_dim // 2} frequency factors, "
                f"got {len(self.rope.frequency_factors)}"
            )
        # A list would do everywhere but as part of a static argument.
        object.__setattr__(self, "eos_token_ids", checks.token_ids("eos_token_ids", self.eos_token_ids))
        for token in (*self.eos_token_ids, *checks.token_ids("bos_token_id", self.bos_token_id)):
            if token >= self.vocab_size:
                raise ValueError(f"token id {token} lies outside of the vocabulary of {self.vocab_size}")

    @classmethod
    def from_hf(cls, config: Any) -> "LlamaConfig":
        """Read the mapping of a Hugging Face `config.json`, or transformers' object of it; absent optional entries take
        transformers' defaults.

        Raises:
            ValueError: an entry this package does not implement, by name, a needed entry that is absent, or a value
                outside of what is allowed.
        """
        if not isinstance(config, Mapping) and callable(to_dict := getattr(config, "to_dict", None)):
            config = to_dict()
        _refuse_unknown(checks.mapping("the model configuration", config))
        missing = [name for name in _REQUIRED if config.get(name) is None]
        if missing:
            raise ValueError(f"the model configuration lacks {', '.join(missing)}")
        given = {name: value for name, value in config.items() if value is not None}
        sizes = {name: checks.integer(name, given[name]) for name in _REQUIRED}
        heads, width = sizes["num_attention_heads"], sizes["hidden_size"]
        if "head_dim" not in given and width % heads:
            raise ValueError(
                f"hidden_size {width} is no multiple of num_attention_heads {heads}, and head_dim is absent"
            )
        return cls(
            **sizes,
            num_key_value_heads=given.get("num_key_value_heads", heads),
            head_dim=given.get("head_dim", width // heads),
            rms_norm_eps=checks.number("rms_norm_eps", given.get("rms_norm_eps", 1e-6)),
            rope=RopeConfig.from_hf(config),
            max_position_embeddings=given.get("max_position_embeddings", 2048),
            tie_word_embeddings=given.get("tie_word_embeddings", False),
            attention_bias=given.get("attention_bias", False),
            mlp_bias=given.get("mlp_bias", False),
            bos_token_id=config.get("bos_token_id", 1),
            eos_token_ids=checks.token_ids("eos_token_id", config.get("eos_token_id", 2)),
        )

    def replace(self, **changes: Any) -> "LlamaConfig":
        """Return a copy with other values, for example fewer layers; validated like the original."""
        return dataclasses.replace(self, **changes)

    @property
    def query_size(self) -> int:
        """N * H."""
        return self.num_attention_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """K * H, width of a token's keys (or values) in one layer."""
        return self.num_key_value_heads * self.head_dim

    @property
    def num_parameters(self) -> int:
        """Weights of the model, a tied head counted once."""
        qkv = self.query_size + 2 * self.kv_size
        attention = self.hidden_size * (qkv + self.query_size)
        mlp = 3 * self.hidden_size * self.intermediate_size
        biases = self.attention_bias * (qkv + self.hidden_size) + self.mlp_bias * (
            2 * self.intermediate_size + self.hidden_size
        )
        tables = self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)
        return tables + self.hidden_size + self.num_hidden_layers * (attention + mlp + biases + 2 * self.hidden_size)


def _attends_to_all(window: Any, config: Mapping[str, Any]) -> bool:
    longest = config.get("max_position_embeddings")
    if config.get("use_sliding_window") is False:
        return True
    return type(window) is int and type(longest) is int and window >= longest


def _is_plain_llama(classes: Any, config: Mapping[str, Any]) -> bool:
    """Return whether the code that a folder brings goes by the names of transformers' own, and is not needed."""
    if not isinstance(classes, Mapping):
        return False
    models = [name for auto, name in classes.items() if auto == "AutoConfig" or str(auto).startswith("AutoModel")]
    return all(isinstance(name, str) and name.split(".")[-1] in _LLAMA_CLASSES for name in models)


_LLAMA_CLASSES = ("LlamaConfig", "LlamaModel", "LlamaForCausalLM", "LlamaForSequenceClassification")

# Attributes that change the computation unless they hold: (value, all attributes) to whether they ask for nothing.
_ASK_FOR_NOTHING: dict[str, tuple[Callable[[Any, Mapping[str, Any]], bool], str]] = {
    "quantization_config": (lambda value, config: False, "None"),
    "pruned_heads": (lambda value, config: False, "none"),
    "per_layer_config": (lambda value, config: False, "none"),
    "use_sliding_window": (lambda value, config: value is False or config.get("sliding_window") is None, "False"),
    "sliding_window": (_attends_to_all, "None, or a window of all positions"),
    "layer_types": (
        lambda value, config: isinstance(value, list) and set(map(str, value)) == {"full_attention"},
        "'full_attention' in each layer",
    ),
    "auto_map": (_is_plain_llama, "that of Llama's own classes"),
}


def _refuse_unknown(config: Mapping[str, Any]) -> None:
    """Refuse what would change the computation without being implemented: silence would give wrong logits."""
    own = {field.name for field in dataclasses.fields(LlamaConfig)} - {"rope", "eos_token_ids"}
    known = {*own, "eos_token_id", *_READ_BY_ROPE, *_FIXED, *_ASK_FOR_NOTHING, *_IRRELEVANT}
    # What is null or empty asks for nothing, whatever it is.
    asked = {name: value for name, value in config.items() if name in _FIXED or value not in (None, {}, [])}
    problems = [f"{name} = {shown(asked[name])} is unknown" for name in sorted(set(asked) - known)]
    for name, allowed in _FIXED.items():
        if name in asked and asked[name] not in allowed:
            options = " or ".join(repr(value) for value in allowed)
            problems.append(f"{name} = {shown(asked[name])}, only {options} is implemented")
    for name, (asks_for_nothing, options) in _ASK_FOR_NOTHING.items():
        if name in asked and not asks_for_nothing(asked[name], config):
            problems.append(f"{name} = {shown(asked[name])}, only {options} is implemented")
    if problems:
        raise ValueError(cut(f"model configuration not implemented: {listed(problems, '; ')}", 1900))
