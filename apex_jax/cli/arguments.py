"""Options that several commands share, and what they are turned into.

An option that was not given is absent, so that every default is stated once: in the class that takes it.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from ..files.bounded_json import brief, parse_json
from ..sampling_params import SamplingParams
from ..structured_outputs import StructuredOutputsParams
from .errors import as_user_errors

if TYPE_CHECKING:
    from ..llm import LLM

DEFAULT_MODEL = "smollm2-135m-instruct"
_MODEL_OPTIONS = ("dtype", "load_format", "num_layers", "revision", "tokenizer")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def byte_count(text: str) -> int:
    """Read a number of bytes: `4096`, `512M`, `1.5GiB` (powers of 1,024)."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write bytes, or a number with K, M, G or T")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def _folder_or_none(text: str) -> str | None:
    return None if text == "none" else text


ENGINE_OPTIONS: dict[str, tuple[Callable[[str], Any], str | None, str]] = {
    "device_kv_tokens": (int, "N", "tokens that the device KV cache holds"),
    "device_kv_bytes": (byte_count, "SIZE", "the same in bytes; 512M and 2G are understood"),
    "memory_fraction": (float, "F", "share of free device memory for it where neither is given"),
    "page_size": (int, "S", "tokens in a page of the cache: 16, 32, 64 or 128"),
    "max_num_seqs": (int, "N", "requests that run at once"),
    "max_model_len": (int, "N", "longest context, prompt and output, in tokens"),
    "host_kv_bytes": (
        byte_count,
        "SIZE",
        "size of a second KV cache in main memory, for requests that the device has no room for",
    ),
    "max_host_seqs": (int, "N", "requests that live there at once"),
    "strategy": (str, None, "device_only, layer_sync, asymmetric_pipelining, async_overlap or auto (default: auto)"),
    "num_cohorts": (int, "N", "groups in which host requests of async_overlap go"),
    "max_time_per_token": (float, "S", "rules out strategies predicted to take longer (auto)"),
    "auto_profile": (bool, None, "measure this machine first if no profile of it is kept (auto)"),
    "max_num_batched_tokens": (int, "N", "prompt tokens computed in one iteration"),
    "compilation_cache": (
        _folder_or_none,
        "DIR",
        "where compiled programs are kept for the next start, or `none` (default: below $APEX_JAX_CACHE)",
    ),
}
"""Fields of `EngineOptions` with what reads them (a flag if that is `bool`), a letter and their help."""


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which model is loaded and how."""
    group = parser.add_argument_group("model", argument_default=argparse.SUPPRESS)
    group.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        help="folder in Hugging Face format, GGUF file, hub name, or a name that `apex-jax info` lists "
        "(default: %(default)s, fetched on first use)",
    )
    group.add_argument("--dtype", help="float32, bfloat16, float16 or auto (default: float32 on a CPU)")
    group.add_argument("--load-format", help="auto, or dummy for random weights of a preset's sizes")
    group.add_argument("--num-layers", type=int, metavar="L", help="layers of a dummy model")
    group.add_argument("--revision", help="branch, tag or commit of a model on the hub (default: its main branch)")
    group.add_argument("--tokenizer", help="folder, file or hub name of another tokenizer than the model's")


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `EngineOptions`."""
    group = parser.add_argument_group("engine", argument_default=argparse.SUPPRESS)
    for name, (kind, metavar, text) in ENGINE_OPTIONS.items():
        reading: dict[str, Any] = {"action": "store_true"} if kind is bool else {"type": kind, "metavar": metavar}
        group.add_argument(f"--{name.replace('_', '-')}", help=text, **reading)


def add_sampling_arguments(parser: argparse.ArgumentParser, *, max_tokens: int) -> None:
    """Add the options of `SamplingParams`; `max_tokens` is the command's own default."""
    group = parser.add_argument_group("sampling", argument_default=argparse.SUPPRESS)
    group.add_argument(
        "--max-tokens",
        type=_count_or_none,
        default=max_tokens,
        metavar="N",
        help="most tokens of a completion, or `none` for as many as fit (default: %(default)s)",
    )
    group.add_argument("--min-tokens", type=int, metavar="N", help="no end before this many tokens")
    group.add_argument("--temperature", type=float, metavar="T", help="0 is greedy (default: 1)")
    group.add_argument("--top-p", type=float, metavar="P", help="keep the fewest tokens that reach this probability")
    group.add_argument("--top-k", type=int, metavar="K", help="keep this many most probable tokens")
    group.add_argument("--min-p", type=float, metavar="P", help="keep tokens this probable beside the most probable")
    group.add_argument("--repetition-penalty", type=float, metavar="R", help="above 1 avoids tokens seen before")
    group.add_argument("--presence-penalty", type=float, metavar="P", help="above 0 avoids tokens that the output has")
    group.add_argument("--frequency-penalty", type=float, metavar="P", help="the same for each time that it has them")
    group.add_argument("--logit-bias", type=_biases, metavar="ID:B[,ID:B...]", help="added to the logits of tokens")
    group.add_argument("--allowed-token-ids", type=_token_ids, metavar="ID[,ID...]", help="draw no other tokens")
    group.add_argument("--bad-words", action="append", metavar="TEXT", help="do not write this; may be repeated")
    group.add_argument(
        "--structured-outputs",
        type=_structured_outputs,
        metavar="JSON",
        help="what the text must look like: an object with `json` (a schema), `regex`, `choice`, `grammar` or "
        "`json_object`, as in `StructuredOutputsParams`",
    )
    group.add_argument(
        "--seed", type=int, help="of the random numbers (default: drawn for each request, alike in every run)"
    )
    group.add_argument("--n", type=int, metavar="N", help="completions of each prompt (default: 1)")
    group.add_argument("--stop", action="append", metavar="TEXT", help="end before this text; may be repeated")
    group.add_argument(
        "--stop-token-ids", type=_token_ids, metavar="ID[,ID...]", help="end at one of these tokens, beside EOS"
    )
    group.add_argument("--ignore-eos", action="store_true", help="go on after the end-of-sequence token")
    group.add_argument("--logprobs", type=int, metavar="N", help="report N alternatives of each token (with --json)")
    group.add_argument(
        "--no-skip-special-tokens", dest="skip_special_tokens", action="store_false", help="show special tokens"
    )
    group.add_argument("--include-stop-str-in-output", action="store_true", help="leave the stop text in the text")


def sampling_params(args: argparse.Namespace) -> SamplingParams:
    """Return the sampling parameters that were asked for.

    Raises:
        UserError: a value is out of range.
    """
    with as_user_errors(TypeError, ValueError):
        return SamplingParams(**_given(args, [field.name for field in fields(SamplingParams)]))


def open_llm(args: argparse.Namespace) -> LLM:
    """Load the model that was asked for.

    Raises:
        UserError: there is no such model, its files are unusable, or a value is out of range.
    """
    with as_user_errors(ValueError, OSError, ModuleNotFoundError):
        from ..llm import LLM

        return LLM(args.model, **_given(args, (*_MODEL_OPTIONS, *ENGINE_OPTIONS)))


def given_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options of `EngineOptions` that were given."""
    return _given(args, tuple(ENGINE_OPTIONS))


def _given(args: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    return {name: value for name, value in vars(args).items() if name in names}


def _count_or_none(text: str) -> int | None:
    try:
        return None if text.lower() == "none" else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a whole number nor `none`") from None


def _structured_outputs(text: str) -> StructuredOutputsParams:
    try:
        value = parse_json(text)
        if not isinstance(value, dict):
            raise TypeError(f"an object is needed, got {value!r}")
        return StructuredOutputsParams(**value)
    except (TypeError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} cannot be used: {brief(error)}") from None


def _biases(text: str) -> dict[int, float]:
    try:
        pairs = [item.split(":") for item in text.split(",")]
        return {int(token): float(bias) for token, bias in pairs}
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a comma-separated list of token ids with biases") from None


def _token_ids(text: str) -> list[int]:
    try:
        return [int(item) for item in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a comma-separated list of token ids") from None
