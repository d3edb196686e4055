"""LLaMA in Flax NNX, its configurations, checkpoint readers and tokenizers."""

from .config import LlamaConfig as LlamaConfig
from .errors import ChatTemplateError as ChatTemplateError
from .errors import CheckpointError as CheckpointError
from .errors import ModelNotFoundError as ModelNotFoundError
from .initialise import random_weights as random_weights
from .llama import LayerWeights as LayerWeights
from .llama import Weights as Weights
from .llama import abstract_weights as abstract_weights
from .llama import embed as embed
from .llama import logits as logits
from .llama import post_attention as post_attention
from .llama import pre_attention as pre_attention
from .llama import rotation as rotation
from .loading.loader import LoadedModel as LoadedModel
from .loading.loader import OpenedModel as OpenedModel
from .loading.loader import load_model as load_model
from .loading.loader import open_model as open_model
from .loading.param_tables import Target as Target
from .loading.params import params_dtype as params_dtype
from .loading.params import weights_from_params as weights_from_params
from .presets import PRESETS as PRESETS
from .presets import preset as preset
from .reference import forward as forward
from .rope import RopeConfig as RopeConfig
from .tokenization.detokenizer import Detokenizer as Detokenizer
from .tokenization.tokenizer import Tokenizer as Tokenizer
