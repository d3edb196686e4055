"""Tools for tests of hybrid engines: policies and schedulers that change their minds, the plain model's tokens, and
what must be left in the end."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from apex_jax import SamplingParams
from apex_jax.engine.grammars import Grammars
from apex_jax.engine.input_processor import check_requests
from apex_jax.engine.shared_engine import Call, SharedEngine
from apex_jax.execution.own_contexts import own_contexts
from apex_jax.execution.sampler import SamplingMode, pack_rows, sample, seed_words
from apex_jax.scheduler import STRATEGIES, Decision, FixedPolicy

DEVICE_ROWS, HOST_ROWS = 4, 4
OPTIONS = {
    "page_size": 16,
    "max_num_seqs": DEVICE_ROWS,
    "max_host_seqs": HOST_ROWS,
    "max_num_batched_tokens": 16,
    "max_model_len": 64,
    "device_kv_tokens": 128,
    "host_kv_bytes": 96 * 1024,
}
"""Eight device pages and twelve host pages of two layers."""


class Restless:
    """Another strategy, other lanes and another limit of host requests every now and then."""

    def __init__(self, rng, num_layers, *, change=0.3):
        self.rng, self.num_layers, self.change, self.decision = (
            rng,
            num_layers,
            change,
            Decision(strategy="device_only"),
        )

    def decide(self, situation):
        if self.rng.random() < self.change:
            strategy = STRATEGIES[self.rng.integers(len(STRATEGIES))]
            most = self.num_layers + 2
            lanes = {"device_only": 0, "layer_sync": 1, "asymmetric_pipelining": 2}.get(
                strategy, int(self.rng.integers(1, most + 1))
            )
            self.decision = Decision(
                strategy=strategy,
                lanes=tuple(self.rng.integers(1, HOST_ROWS + 1, lanes).tolist()),
                max_host_requests=int(self.rng.integers(HOST_ROWS + 1)),
            )
        return self.decision


class Unsettled:
    """A policy's decisions, and moves that nobody needs."""

    def __init__(self, policy, rng, chance):
        self.policy, self.rng, self.chance = policy, rng, chance

    def decide(self, situation):
        decision, roster = self.policy.decide(situation), situation.roster()
        device, rest = roster.arrivals[: len(roster.device)], roster.arrivals[len(roster.device) :]
        host = rest[: len(roster.host)]
        return dataclasses.replace(
            decision,
            evict=self.pick(device, self.chance),
            fetch=self.pick(host, self.chance),
            preempt=self.pick([*device, *host], 0.3 * self.chance),
        )

    def pick(self, ids, chance):
        return (int(self.rng.choice(ids)),) if ids and self.rng.random() < chance else ()


def unsettle(scheduler, rng, chance):
    """Let a scheduler's policy evict, fetch and preempt requests that nobody needs to move."""
    scheduler.policy = Unsettled(scheduler.policy, rng, chance)


def settle(llm, strategy="device_only", num_cohorts=2):
    """Give an idle engine's scheduler back its own ways, a fixed policy and all pages."""
    engine = llm.engine
    assert not engine.has_unfinished
    engine.decide_by(FixedPolicy(strategy=strategy, num_cohorts=num_cohorts, max_host_requests=HOST_ROWS))
    return engine.scheduler


def beginner(llm):
    """Return (groups, prompts, params) -> None that queues requests and notes them, but runs nothing."""
    limits = {"tokenizer": llm.tokenizer, "max_model_len": llm.max_model_len}
    shared = SharedEngine(llm.engine, llm.config, seed=0, **limits)
    grammars = Grammars(llm.tokenizer, llm.config)

    def begin(groups, prompts, params):
        call = Call()
        call.groups = groups
        shared.begin(call, check_requests(prompts, params, llm.config, grammars=grammars, **limits))

    return begin


@own_contexts()
def run(llm, load, rng, *, arrive=0.4, cancel=0.02, most=5000):
    """Serve (prompt, params) pairs that arrive between the iterations; some are cancelled at random moments.

    Returns the jobs, all finished; a cancelled one has `finish_reason` "abort".
    """
    engine, todo, jobs = llm.engine, list(reversed(load)), []
    begin = beginner(llm)
    for _ in range(most):
        while todo and (rng.random() < arrive or not engine.has_unfinished):
            begin(jobs, *todo.pop())
        if rng.random() < cancel:
            for generation in jobs[rng.integers(len(jobs))].generations:
                engine.abort(generation)
        if engine.has_unfinished:
            engine.step()
        if not todo and all(job.finished for job in jobs):
            return jobs
    stuck = [generation.request for job in jobs for generation in job.generations if not generation.finished]
    raise AssertionError(f"not finished after {most} iterations: {stuck}")


class Reference:
    """What the plain model gives for one request, at every position at once.

    Args:
        dense: token ids -> logits [T, V].
        rows: output tokens at most.
    """

    def __init__(self, dense, rows=32):
        self.dense, self.rows = dense, rows
        self.choose = jax.jit(functools.partial(sample, mode=SamplingMode(sampled=True, filters=True, penalties=True)))

    def tokens(self, prompt, params, index, found):
        """Return the token that follows each beginning of `found`: equal lists mean that all tokens are right."""
        logits = self.dense([*prompt, *found])[len(prompt) - 1 : -1]
        if params.greedy and params.repetition_penalty == 1:
            return logits.argmax(-1).tolist()
        count = len(found)
        rows = pack_rows(
            [(params, seed_words(params.seed, index), step) for step in range(self.rows)], eos_token_ids=()
        )
        seen = np.zeros((self.rows, logits.shape[1]), bool)
        seen[:, prompt] = True
        for step, token in enumerate(found[:-1]):
            seen[step + 1 :, token] = True
        padded = np.zeros((self.rows, logits.shape[1]), np.float32)
        padded[:count] = logits
        rows = dataclasses.replace(rows, seen=jnp.asarray(seen))
        return np.asarray(self.choose(jnp.asarray(padded), rows).tokens)[:count].tolist()

    def check(self, jobs):
        """Check all tokens of jobs, and that those which were not cancelled have as many as they were promised."""
        for job in jobs:
            for generation in job.generations:
                found = generation.stream.token_ids
                if generation.stream.finish_reason != "abort":
                    assert len(found) == job.params.max_tokens
                if found:
                    assert found == self.tokens(job.prompt.ids, job.params, generation.index, found)


def check_empty(llm):
    """Nothing of past requests is left in scheduler, executor, device, worker."""
    stats, executor = llm.stats(), llm.engine.executor
    assert (stats.running, stats.waiting, stats.on_host) == (0, 0, 0)
    scheduler = llm.engine.scheduler
    assert scheduler.pages.free_ids() == list(range(stats.num_pages))
    assert scheduler.host_pages.free_ids() == list(range(stats.num_host_pages))
    assert sorted(scheduler.free_slots) == list(range(executor.buckets.slots))
    assert scheduler.cohorts.num_under_way == 0
    assert executor.is_idle
    assert executor.worker.is_idle


def draw_load(rng, count, vocab_size, *, longest=40, most=12, kinds=4):
    """Return (prompt, params) pairs of greedy, seeded and penalised requests, some with two completions; the first two
    `kinds` are greedy ones."""
    load = []
    for number in range(count):
        kind = rng.integers(kinds)
        params = SamplingParams(
            temperature=0.0 if kind < 2 else 0.9,
            top_k=20 if kind == 2 else 0,
            repetition_penalty=1.0 if kind < 3 else 1.3,
            n=2 if rng.random() < 0.15 else 1,
            seed=number,
            max_tokens=int(rng.integers(1, most + 1)),
            ignore_eos=True,
        )
        load.append((rng.integers(0, vocab_size, rng.integers(1, longest + 1)).tolist(), params))
    return load
