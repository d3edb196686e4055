"""`LLM`: a model with its engine; the interface that programs call."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from .engine.capacity import EngineSizes, plan_memory
from .engine.engine import Engine, EngineStats
from .engine.fair_lock import FairLock
from .engine.host_tier import make_worker
from .engine.input_processor import Prompt, TokenizedPrompt, as_batch, tokenize
from .engine.output_processor import OutputStream
from .engine.policy_factory import follower_of, make_policy, planner_of
from .engine.request_group import Job, delta, result
from .execution.attention_backend import default_dtype, device_attention_for
from .execution.buckets import Buckets
from .execution.executor import Executor
from .execution.jax_device import JaxDevice
from .execution.sampler import banned_tokens
from .models import LlamaConfig, Tokenizer, Weights, open_model, params_dtype, weights_from_params
from .options import EngineOptions
from .outputs import RequestOutput
from .profiling.store import profile_key, ready_profile
from .progress_bar import Bar, each_compilation
from .sampling_params import SamplingParams
from .scheduler import Profile
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
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        dtype: str = "auto",
        load_format: str = "auto",
        num_layers: int | None = None,
        **options: Any,
    ) -> None:
        checked = EngineOptions(**options)
        device = checked.device or jax.devices()[0]
        opened = open_model(
            os.fspath(model),
            dtype=default_dtype(device) if dtype == "auto" else dtype,
            load_format=load_format,
            num_layers=num_layers,
        )
        sizes = plan_memory(opened.config, opened.dtype, checked, device=device)
        loaded = opened.load(device=device)
        self._start(loaded.config, loaded.weights, loaded.tokenizer, checked, sizes, device)

    @classmethod
    def from_params(
        cls, config: LlamaConfig, params: Any, *, tokenizer: Any = None, dtype: str = "auto", **options: Any
    ) -> Self:
        """Make an `LLM` of arrays that a program already holds.

        Args:
            config: the model.
            params: `Weights`, or a mapping with Hugging Face's names, flat or nested.
            tokenizer: a `Tokenizer`, or one of transformers; None allows token ids only.
            dtype: "float32", "bfloat16", "float16", or "auto": the type of the arrays.
            options: see `EngineOptions`.

        Raises:
            TypeError: `config` or `params` is something else.
            ValueError: arrays are missing, unknown or misshapen, all of them by name; or as in `plan_memory`.
        """
        checked = EngineOptions(**options)
        device = checked.device or jax.devices()[0]
        if tokenizer is not None and not isinstance(tokenizer, Tokenizer):
            tokenizer = Tokenizer(tokenizer)
        chosen = params_dtype(config, params, dtype=dtype)
        sizes = plan_memory(config, chosen, checked, device=device)
        llm = cls.__new__(cls)
        # Copies: where type and shape fit as they are, the arrays would be the caller's, who may donate them.
        weights = jax.tree.map(jnp.copy, weights_from_params(config, params, dtype=chosen))
        llm._start(config, weights, tokenizer, checked, sizes, device)
        return llm

    def _start(
        self,
        config: LlamaConfig,
        weights: Weights,
        tokenizer: Tokenizer | None,
        options: EngineOptions,
        sizes: EngineSizes,
        device: jax.Device,
    ) -> None:
        attention = device_attention_for(device, config.head_dim)
        self.config = config
        self.tokenizer = tokenizer
        self.device = device
        self.dtype = weights.dtype
        self.attention_name = attention.name
        self.device_kv_tokens = sizes.pages * options.page_size
        self.host_kv_tokens = sizes.host_pages * options.page_size
        self.max_model_len = sizes.max_model_len
        self.strategy = options.strategy
        buckets = Buckets(
            max_num_seqs=sizes.max_num_seqs,
            max_host_seqs=sizes.max_host_seqs,
            max_prefill_pages=sizes.max_prefill_pages,
            page_size=options.page_size,
            table_width=-(-self.max_model_len // options.page_size),
            ragged_attention=attention.ragged,
        )
        jax_device = JaxDevice(
            config,
            weights,
            attention=attention.append_and_attend,
            device=device,
            num_pages=sizes.pages,
            buckets=buckets,
            eos_token_ids=config.eos_token_ids,
        )
        worker = make_worker(config, weights.dtype, options, sizes, device=device)
        executor = Executor(jax_device, worker)
        self._options = options
        policy = make_policy(executor, config, weights.dtype, options, device=device, attention=attention.name)
        self._engine = Engine(executor, policy, follower_of(policy))
        self._lock = FairLock()
        self._dropped: deque[list[Job]] = deque()
        self._seeds = np.random.default_rng(options.seed)
        self._num_jobs = 0

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
        jobs: list[Job] = []
        try:
            self._begin(jobs, checked)
            with Bar(total=len(jobs), desc="Requests", unit="request", disable=not use_tqdm) as bar:
                finished = 0
                while finished < len(jobs):
                    with self._lock:
                        self._step(jobs)
                    before, finished = finished, sum(job.finished for job in jobs)
                    bar.update(finished - before)
            return [result(job, self.tokenizer) for job in jobs]
        finally:
            self._dropped.append(jobs)

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
        return self._stream(self._checked(prompts, sampling_params))

    def update_params(self, params: Any) -> None:
        """Go on with other weights of the same model; nothing is compiled again.

        Args:
            params: as in `from_params`; converted to the dtype in use.

        Raises:
            ValueError: arrays are missing, unknown or misshapen.
            RuntimeError: requests are under way, whose KV cache holds keys and values of the old weights.
        """
        with self._lock:
            self._abort_dropped()
            if self._engine.has_unfinished:
                raise RuntimeError("update_params was called while requests are under way; let them end or close them")
            weights = weights_from_params(self.config, params, dtype=self.dtype)
            self._engine.executor.device.set_weights(jax.tree.map(jnp.copy, weights))

    def warm_up(self, *, use_tqdm: bool = False) -> None:
        """Compile everything that requests can need, so that none of them waits for a compilation.

        Args:
            use_tqdm: count the programs as they are compiled.
        """
        with (
            self._lock,
            Bar(desc="Compiling", unit=" programs", disable=not use_tqdm) as bar,
            each_compilation(bar.update),
        ):
            self._engine.warm_up()

    def profile(self, *, again: bool = False, use_tqdm: bool = False) -> Profile:
        """Return what the parts of an iteration take on this machine with this model.

        Measured profiles are kept in `$APEX_JAX_CACHE/profiles`, by default under `~/.cache/apex_jax`, and found again
        by an engine of the same hardware, model sizes, types and versions. str "auto" decides by it from then on.

        Args:
            again: measure even if one is kept.
            use_tqdm: show a progress bar while measuring.

        Raises:
            ProfileError: the one that is kept cannot be used; it says why, and `again` replaces it.
            ValueError: there is no host tier to measure.
            RuntimeError: requests are under way.
            OSError: the profile cannot be read or written.
        """
        with self._lock:
            self._abort_dropped()
            if self._engine.has_unfinished:
                raise RuntimeError("profile was called while requests are under way; let them end or close them")
            executor = self._engine.executor
            key = profile_key(
                self.config,
                self.dtype,
                self.device,
                attention=self.attention_name,
                page_size=executor.buckets.page_size,
            )
            profile = ready_profile(executor, self.config, self.dtype, key, again=again, use_tqdm=use_tqdm)
            if isinstance(self._engine.policy, Planner):
                planner = planner_of(profile, executor, self._options)
                self._engine.decide_by(planner, follower_of(planner))
            return profile

    def explain(self) -> str:
        """Return a screen of text on the last decision of strategy "auto": what each strategy was predicted to take and
        yield, the paper's inequality with both sides filled in, what was chosen and why, and how the last predictions
        compare with what happened."""
        with self._lock:
            policy = self._engine.policy
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
        with self._lock:
            if self._engine.executor.recorder is not None:
                raise RuntimeError("recording was called while another recording is open; an engine has one at a time")
            self._engine.executor.record(recorder)
        try:
            yield recorder
        finally:
            with self._lock:
                self._engine.executor.record(None)

    def close(self) -> None:
        """Abort all requests, with stop reason "closed", and end the host's thread; the `LLM` stays usable."""
        with self._lock:
            self._abort_dropped()
            self._engine.close()

    def stats(self) -> EngineStats:
        """Return what the engine has done and holds."""
        with self._lock:
            self._abort_dropped()
            return self._engine.stats()

    def _stream(self, checked: list[tuple[TokenizedPrompt, SamplingParams]]) -> Iterator[RequestOutput]:
        jobs: list[Job] = []
        try:
            self._begin(jobs, checked)
            unfinished = jobs
            while unfinished:
                with self._lock:
                    self._step(unfinished)
                    news = [
                        delta(job, generation, self.tokenizer)
                        for job in unfinished
                        for generation in job.generations
                        if generation.has_news
                    ]
                    # Under the lock still: a job that another caller's step ends later has news to tell.
                    unfinished = [job for job in unfinished if not job.finished]
                yield from news
        finally:
            self._dropped.append(jobs)

    def _begin(self, jobs: list[Job], checked: list[tuple[TokenizedPrompt, SamplingParams]]) -> None:
        """Queue requests, noting each in `jobs` before the engine knows of it."""
        with self._lock:
            self._abort_dropped()
            for prompt, params in checked:
                jobs.append(Job(request_id=str(self._num_jobs), prompt=prompt, params=params))
                self._num_jobs += 1
                self._add_generations(jobs[-1])

    def _step(self, jobs: Sequence[Job]) -> None:
        """Run one iteration, unless another thread's iterations have ended all these jobs meanwhile."""
        self._abort_dropped()
        if not all(job.finished for job in jobs):
            self._engine.step()
        for job in jobs:
            if job.engine_error is not None:
                raise RuntimeError("the engine failed while this request was under way") from job.engine_error

    def _abort_dropped(self) -> None:
        """Abort what callers have left behind.

        They only note it: an interrupt may cut short whatever else they did, and an iterator may be closed by the
        garbage collector in the middle of an iteration of the engine.
        """
        while self._dropped:
            for job in self._dropped[0]:
                for generation in job.generations:
                    self._engine.abort(generation)
            self._dropped.popleft()

    def _add_generations(self, job: Job) -> None:
        params, ids = job.params, job.prompt.ids
        seed = int(self._seeds.integers(2**63)) if params.seed is None else params.seed
        room = self.max_model_len - len(ids)
        for index in range(params.n):
            detokenizer = None
            if self.tokenizer is not None:
                detokenizer = self.tokenizer.detokenizer(skip_special_tokens=params.skip_special_tokens, context=ids)
            stream = OutputStream(params, detokenizer, eos_token_ids=self.config.eos_token_ids, max_tokens=room)
            job.generations.append(self._engine.prepare(ids, params, stream, seed=seed, index=index))
            self._engine.add(job.generations[-1])

    def _checked(self, prompts: Any, sampling_params: Any) -> list[tuple[TokenizedPrompt, SamplingParams]]:
        batch = as_batch(prompts)
        if sampling_params is None or isinstance(sampling_params, SamplingParams):
            each = [sampling_params or SamplingParams()] * len(batch)
        else:
            if not isinstance(sampling_params, Sequence):
                raise TypeError(f"sampling_params must be SamplingParams or a list of them, got {sampling_params!r}")
            each = list(sampling_params)
            if len(each) != len(batch):
                raise ValueError(
                    f"{len(each)} sampling_params were given for {len(batch)} prompts; one for each is needed"
                )
        checked = []
        for prompt, params in zip(batch, each, strict=True):
            if not isinstance(params, SamplingParams):
                raise TypeError(f"sampling_params must be SamplingParams, got {params!r}")
            if params.stop_strings and self.tokenizer is None:
                raise ValueError(f"stop strings {params.stop_strings!r} need a tokenizer and this model has none")
            if params.min_tokens > 0:
                banned_tokens(params, self.config.eos_token_ids)
            vocab_size, limit = self.config.vocab_size, self.max_model_len
            checked.append((tokenize(prompt, self.tokenizer, vocab_size=vocab_size, max_model_len=limit), params))
        return checked
