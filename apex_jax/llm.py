"""`LLM`: a model with its engine; the interface that programs call."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

import jax

from .engine.capacity import longest_context, plan_memory
from .engine.engine import Engine
from .engine.executor_factory import make_device, make_worker
from .engine.grammars import Grammars
from .engine.input_processor import CheckedRequest, Message, Prompt, chat_prompts, check_requests
from .engine.policy_factory import assumed_profile, fixed_policy, follower_of, planner_of
from .engine.shared_engine import SharedEngine
from .engine.stats import EngineStats
from .execution.attention_backend import default_dtype, device_attention_for
from .execution.compilation_cache import default_folder, keep_compiled
from .execution.executor import Executor
from .execution.own_contexts import default_device, own_contexts, placed_on, refuse_traces
from .models import LlamaConfig, Tokenizer, Weights, open_model
from .models.loading.param_names import ParamMapping
from .models.loading.params import open_params
from .option_names import engine_options
from .options import EngineOptions
from .outputs import RequestOutput
from .profiling.store import ProfileStore
from .progress_bar import Bar, each_compilation
from .recipe import FROM_PARAMS, Recipe
from .sampling_params import SamplingParams
from .scheduler import Capacity, Policy, Profile
from .scheduler.planner.explain import explain
from .scheduler.planner.planner import Planner
from .scheduler.strategies import DEVICE_ONLY
from .tracing.recorder import Recorder


class LLM:
    """A LLaMA model ready to generate.

    Requests of all callers share the device: they are batched together iteration by iteration, and a request's tokens
    depend on its own prompt, parameters and seed alone. With float32 that holds to the last token. With half types sums
    of other orders round differently, so that batch size, prefill chunks and preemption can decide between tokens whose
    logits nearly tie; over tens of tokens many texts meet such a tie. May be used from several threads.

    Args:
        model: a folder in Hugging Face format, a GGUF file, a hub name, `smollm2-135m-instruct`, or with
            `load_format="dummy"` the name of a preset, which gets random weights.
        dtype: of weights and KV cache: "float32", "bfloat16", "float16", or "auto": float32 on a CPU, else bfloat16, or
            float16 where the device has no bfloat16.
        load_format: "auto" or "dummy".
        num_layers: with "dummy", how many layers; the model's own number if None.
        revision: branch, tag or commit of a hub model (and of no other); its main branch if None.
        tokenizer: where another tokenizer is: a folder, a file of one (`tokenizer.json`, a GGUF file) or a hub name.
        options: see `EngineOptions`.

    Attributes:
        config: the model.
        tokenizer: None if the model has none.
        device: where the model runs.
        dtype: of weights and KV cache.
        attention_name: decode attention in use, "native" or "xla".
        device_kv_tokens: size of the device KV cache in tokens.
        host_kv_tokens: size of the host KV cache in tokens, 0 without one.
        strategy: as it was given.
        max_model_len: longest context in tokens, prompt and output.
        engine: what runs the requests; for those who measure or test it.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        dtype: str = "auto",
        load_format: str = "auto",
        num_layers: int | None = None,
        revision: str | None = None,
        tokenizer: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> None:
        of_model = {"dtype": dtype, "load_format": load_format, "num_layers": num_layers}
        of_model |= {"revision": revision, "tokenizer": tokenizer}
        checked = engine_options(options, caller="LLM", others=tuple(of_model))
        self._recipe = Recipe(model=os.fspath(model), arguments={**of_model, **options})
        with self._making(checked) as device:
            dtype = default_dtype(device) if dtype == "auto" else dtype
            opened = open_model(os.fspath(model), **{**of_model, "dtype": dtype})
            capacity = plan_memory(opened.config, opened.dtype, checked, device=device)
            loaded = opened.load(device=device)
            self._start(loaded.config, loaded.weights, loaded.tokenizer, checked, capacity, device)

    @classmethod
    def from_params(
        cls,
        config: LlamaConfig,
        params: Any,
        *,
        tokenizer: Any = None,
        dtype: str = "auto",
        mapping: ParamMapping | None = None,
        **options: Any,
    ) -> Self:
        """Make an `LLM` of arrays that a program already holds.

        Args:
            config: the model.
            params: `Weights`, a mapping with Hugging Face's names, flat or nested, an `nnx.Module` or `nnx.State`, or
                linen's variables; see `apex_jax.models.weights_from_params`. On any devices and meshes; copied.
            tokenizer: a `Tokenizer`, or one of transformers; None allows token ids only.
            dtype: "float32", "bfloat16", "float16", or "auto": the type of the arrays.
            mapping: what the arrays are if they have other names: "tunix", "maxtext", "maxtext-llama3.1", a table or a
                function; see `apex_jax.models.weights_from_params`.
            options: see `EngineOptions`.

        Raises:
            TypeError: `config` or `params` is something else.
            ValueError: arrays are missing, unknown or misshapen, all of them by name; or as in `plan_memory`.
        """
        checked = engine_options(options, caller="LLM.from_params", others=("tokenizer", "dtype", "mapping"))
        # Before contexts change: a function of the caller's works in the caller's.
        refuse_traces()
        opened = open_params(config, params, mapping)
        llm = cls.__new__(cls)
        llm._recipe = FROM_PARAMS
        with llm._making(checked) as device:
            if tokenizer is not None and not isinstance(tokenizer, Tokenizer):
                tokenizer = Tokenizer(tokenizer)
            chosen = opened.dtype(dtype)
            capacity = plan_memory(config, chosen, checked, device=device)
            weights = opened.weights(chosen, placed_on(device))
            llm._start(config, weights, tokenizer, checked, capacity, device)
        return llm

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle how it was made: unpickling makes another, of the same model with the same options.

        Raises:
            TypeError: its weights were given as arrays; it says what to send instead.
        """
        return self._recipe.reduced(type(self))

    @staticmethod
    @contextmanager
    def _making(options: EngineOptions) -> Iterator[jax.Device]:
        """Yield the device of an engine that is being made, in JAX contexts of its own."""
        device = options.device or default_device()
        with own_contexts():
            keep_compiled(default_folder() if options.compilation_cache == "default" else options.compilation_cache)
            yield device

    def _start(
        self,
        config: LlamaConfig,
        weights: Weights,
        tokenizer: Tokenizer | None,
        options: EngineOptions,
        capacity: Capacity,
        device: jax.Device,
    ) -> None:
        attention = device_attention_for(device, config.head_dim)
        self.config = config
        self.tokenizer = tokenizer
        self.device = device
        self.dtype = weights.dtype
        self.attention_name = attention.name
        self.device_kv_tokens = capacity.device_kv_tokens
        self.host_kv_tokens = capacity.host_kv_tokens
        self.max_model_len = longest_context(config, options, capacity)
        self.strategy = options.strategy
        self._options = options
        self._grammars = Grammars(tokenizer, config)
        self._jax_device = make_device(
            config, weights, capacity, attention, max_model_len=self.max_model_len, device=device
        )
        executor = Executor(self._jax_device, make_worker(config, self.dtype, capacity, device=device))
        self._profiles = ProfileStore(executor, config, self.dtype, device=device, attention=attention.name)
        policy = self._first_policy(executor)
        self.engine = Engine(executor, policy, follower_of(policy))
        self._requests = SharedEngine(
            self.engine, config, tokenizer, max_model_len=self.max_model_len, seed=options.seed
        )

    def _first_policy(self, executor: Executor) -> Policy:
        """Return what decides about the strategy of each plan.

        With strategy "auto" that is a planner. Its profile is the kept one of this machine and model, or is measured
        now if the options ask for it; otherwise rates are assumed, which the first iterations correct.

        Raises:
            ProfileError: the kept profile cannot be used, and the options do not ask to measure it anew.
        """
        fixed = fixed_policy(executor, self._options)
        if fixed is not None:
            return fixed
        if self._options.auto_profile:
            profile = self._profiles.ready(repair=True, use_tqdm=True)
        else:
            profile = self._profiles.find()
        if profile is None:
            profile = assumed_profile(executor, self.config, self.dtype, self._profiles.key, device=self.device)
        return planner_of(profile, executor, self._options)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Generate completions of all prompts and return them in the prompts' order.

        Where the host cannot do its part for a request (no memory for its attention, say), that request alone ends,
        with the tokens that it has, `finish_reason` "abort" and what went wrong as `stop_reason`. Nothing is raised;
        the log has the traceback.

        Args:
            prompts: one prompt or several, each a text, chat messages or token ids.
            sampling_params: one for all prompts or one for each; vLLM's defaults if None.
            use_tqdm: show a progress bar, or a last line of it where standard error is no terminal.

        Raises:
            TypeError, ValueError: a prompt or its parameters cannot be served; nothing has been started then.
            RuntimeError: the device failed, or another thread was interrupted in the middle of an iteration, which ends
                the requests of all callers. The cause says what went wrong; the `LLM` stays usable.
            KeyboardInterrupt: the requests are aborted and the `LLM` stays usable.
        """
        checked = self._checked(prompts, sampling_params)
        with Bar(total=len(checked), desc="Requests", unit="request", disable=not use_tqdm) as bar:
            return self._requests.generate(checked, bar.update)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answer one conversation or several, as `generate` does, with a say in how the chat template is used.

        Args:
            messages: {"role": ..., "content": ...} each; a list of them, or a list of such lists.
            sampling_params, use_tqdm: as in `generate`.
            chat_template: another template than the model's.
            add_generation_prompt: the prompt ends with what begins an answer.
            continue_final_message: it ends within the last message instead, and the model goes on with that.
            tools: what the model may call, as JSON schemas.
            chat_template_kwargs: further values for the template.

        Raises:
            TypeError, ValueError, RuntimeError, KeyboardInterrupt: as `generate`.
        """
        prompts = chat_prompts(
            messages,
            self.tokenizer,
            chat_template=chat_template,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            tools=tools,
            chat_template_kwargs=chat_template_kwargs,
        )
        return self.generate(prompts, sampling_params, use_tqdm=use_tqdm)

    def get_tokenizer(self) -> Any:
        """Return the model's tokenizer as transformers has it; None if the model has none."""
        return None if self.tokenizer is None else self.tokenizer.backend

    def stream(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> Iterator[RequestOutput]:
        """Generate completions and yield what is new as it comes.

        Each `RequestOutput` holds one completion whose text, token ids and logprobs are those that came since the last
        one of the same completion; `request_id` and `outputs[0].index` tell completions apart. Closing the iterator
        aborts its requests. A request that the host fails ends as in `generate`, and the others go on.

        Arguments and errors are those of `generate`; bad input is reported by the call, before the first item.
        """
        return self._requests.stream(self._checked(prompts, sampling_params))

    def update_params(self, params: Any, *, mapping: ParamMapping | None = None) -> None:
        """Go on with other weights of the same model; nothing is compiled again.

        Args:
            params: as in `from_params`; copied, and converted to the dtype in use.
            mapping: as in `from_params`.

        Raises:
            TypeError, ValueError: `params` do not fit; as in `from_params`.
            RuntimeError: requests are under way, whose KV cache holds keys and values of the old weights; or JAX traces
                a function.
        """
        refuse_traces()
        opened = open_params(self.config, params, mapping)
        with self._requests.idle("update_params"):
            self._jax_device.set_weights(opened.weights(self.dtype, placed_on(self.device)))
            self._recipe = FROM_PARAMS

    def warm_up(self, *, use_tqdm: bool = False) -> None:
        """Compile everything that requests can need, so that none of them waits for a compilation.

        Args:
            use_tqdm: count the programs as they are compiled.
        """
        with (
            self._requests.exclusive(),
            Bar(desc="Compiling", unit=" programs", disable=not use_tqdm) as bar,
            each_compilation(bar.update),
        ):
            self.engine.warm_up()

    def profile(self, *, again: bool = False, use_tqdm: bool = False) -> Profile:
        """Return what the parts of an iteration take on this machine with this model.

        Measured profiles are kept in `$APEX_JAX_CACHE/profiles`, by default under `~/.cache/apex_jax`, and found again
        by an engine of the same hardware, model sizes, types and versions. Strategy "auto" decides by it from then on.

        Args:
            again: measure even if one is kept.
            use_tqdm: show a progress bar while measuring.

        Raises:
            ProfileError: the one that is kept cannot be used; it says why, and `again` replaces it.
            ValueError: there is no host tier to measure.
            RuntimeError: requests are under way.
            OSError: the profile cannot be read or written.
        """
        with self._requests.idle("profile"):
            profile = self._profiles.ready(again=again, use_tqdm=use_tqdm)
            if isinstance(self.engine.policy, Planner):
                planner = planner_of(profile, self.engine.executor, self._options)
                self.engine.decide_by(planner, follower_of(planner))
            return profile

    def explain(self) -> str:
        """Return a screen of text on the last decision of strategy "auto": what each strategy was predicted to take and
        yield, the paper's inequality with both sides filled in, what was chosen and why, and how the last predictions
        compare with what happened."""
        with self._requests.exclusive():
            policy = self.engine.policy
            if isinstance(policy, Planner):
                return explain(policy)
            why = "there is no host tier (host_kv_bytes)" if not self.host_kv_tokens else "it was asked for"
            strategy = DEVICE_ONLY.name if not self.host_kv_tokens else self.strategy
            return f"Nothing is decided: the strategy is always {strategy}, because {why}."

    @contextmanager
    def recording(self) -> Iterator[Recorder]:
        """Record what device, host and Python do while the context is open.

        Yields:
            The recorder; its `save` writes a file that `apex-jax timeline` and Perfetto draw. Device times end when a
            thread notices; it slows the engine down a little.

        Raises:
            RuntimeError: another recording is open.
        """
        recorder = Recorder()
        with self._requests.exclusive():
            if self.engine.recorder is not None:
                raise RuntimeError("recording was called while another recording is open; an engine has one at a time")
            self.engine.record(recorder)
        try:
            yield recorder
        finally:
            with self._requests.exclusive():
                self.engine.record(None)

    def close(self) -> None:
        """Abort all requests, with stop reason "closed", and end the host's thread; the `LLM` stays usable."""
        with self._requests.exclusive():
            self.engine.close()

    def stats(self) -> EngineStats:
        """Return what the engine has done and holds."""
        with self._requests.exclusive():
            return self.engine.stats()

    def _checked(self, prompts: Any, sampling_params: Any) -> list[CheckedRequest]:
        with own_contexts():
            return check_requests(
                prompts,
                sampling_params,
                self.config,
                tokenizer=self.tokenizer,
                max_model_len=self.max_model_len,
                grammars=self._grammars,
            )
