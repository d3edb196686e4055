"""Interrupts at any moment of a hybrid engine: no thread stays, nothing is held, and the next tokens are right."""

import linecache
import random
import sys
import threading

import numpy as np
import pytest

from apex_jax import SamplingParams
from apex_jax.host_offload import worker as worker_module

from .hybrid import OPTIONS, check_empty, settle, unsettle

STRATEGIES = ("layer_sync", "asymmetric_pipelining", "async_overlap", "fast_lane")
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
LONG = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)
PROMPTS = [[number + 1] * (5 + 3 * number) for number in range(9)]


@pytest.fixture(scope="module")
def llm(make):
    made = make(strategy="async_overlap", **OPTIONS)
    made.generate(PROMPTS, GREEDY, use_tqdm=False)
    return made


@pytest.fixture(scope="module")
def expected(greedy):
    return [greedy(prompt, 12) for prompt in PROMPTS]


@pytest.fixture
def usable(llm, expected):
    """After the test: no thread lasts, nothing is held, and the tokens are right, the host's among them."""
    before = set(threading.enumerate())
    yield
    llm.stats()
    for thread in set(threading.enumerate()) - before:
        # An interrupt may have come before the worker knew of its thread; then that ends for want of work.
        assert thread.name == "apex-jax-host"
        thread.join(60)
        assert not thread.is_alive()
    check_empty(llm)
    settle(llm, "async_overlap")
    hosted = llm.stats().host_tokens
    outputs = llm.generate(PROMPTS, GREEDY, use_tqdm=False)
    assert [output.outputs[0].token_ids for output in outputs] == expected
    assert llm.stats().host_tokens > hosted
    check_empty(llm)
    assert set(threading.enumerate()) == before


def raising_at(call, after, original, error):
    """Return `original` that raises `error` in the calling thread at its call of that number, before or after its
    work."""
    calls = iter(range(1, 1 << 30))

    def function(*args, **kwargs):
        here = threading.current_thread() is threading.main_thread()
        hit = here and next(calls) == call
        if hit and not after:
            raise error
        result = original(*args, **kwargs)
        if hit:
            raise error
        return result

    return function


def generate_again_and_again(llm):
    for _ in range(20):
        llm.generate(PROMPTS, LONG, use_tqdm=False)


def stream_again_and_again(llm):
    for _ in range(20):
        assert sum(1 for _ in llm.stream(PROMPTS, LONG)) > 0


PLACES = [
    *(("executor", name) for name in ("submit", "fetch", "arrived", "take_failures", "rest", "_hand_over", "_await")),
    *(("executor", name) for name in ("_depart",)),
    *(("moves", name) for name in ("evict", "fetch", "land")),
    *(("device", name) for name in ("board", "boundary", "attend", "gather", "scatter", "deliver", "sample")),
    *(("worker", name) for name in ("attend", "store", "load", "join", "stop", "observers")),
    *(("worker", name) for name in ("_submit", "_run_next", "_change")),
]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("place", PLACES, ids=lambda place: ".".join(place))
def test_an_interrupt_around_any_call(place, after, llm, usable, monkeypatch):
    executor = llm.engine.executor
    owners = {"moves": executor.moves, "device": executor.device, "worker": executor.worker}
    owner = owners.get(place[0], executor)
    for number, strategy in enumerate(STRATEGIES):
        rng = np.random.default_rng(number)
        unsettle(settle(llm, strategy), rng, chance=0.2)
        with monkeypatch.context() as patch:
            if place[1] == "observers":
                (observer,) = owner.observers
                patch.setattr(owner, "observers", [raising_at(1 + number, after, observer, KeyboardInterrupt())])
            else:
                broken = raising_at(1 + number, after, getattr(owner, place[1]), KeyboardInterrupt())
                patch.setattr(owner, place[1], broken)
            with pytest.raises(KeyboardInterrupt):
                generate_again_and_again(llm)
        check_empty(llm)


@pytest.mark.parametrize("seed", range(18))
def test_a_traced_interrupt_at_any_line(seed, llm, usable):
    """KeyboardInterrupt after a random number of lines of the engine, its scheduler or its worker."""
    rng = random.Random(seed)
    settle(llm, STRATEGIES[seed % 3])
    only_worker = seed % 2 == 0
    left = rng.randrange(1, 600 if only_worker else 20_000)

    def trace(frame, event, _):
        nonlocal left
        path = frame.f_code.co_filename
        if only_worker and not path.endswith("worker.py"):
            return trace if event == "call" and "apex_jax" in path else None
        if not any(folder in path for folder in ("apex_jax", "/scheduler/", "host_offload")):
            return None
        # A `with` is left between two bytecodes where no signal is looked for, but where a trace function is called.
        if event == "line" and not linecache.getline(path, frame.f_lineno).lstrip().startswith("with "):
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
        return trace

    previous = sys.gettrace()
    try:
        sys.settrace(trace)
        with pytest.raises(KeyboardInterrupt):
            (generate_again_and_again if seed % 4 < 2 else stream_again_and_again)(llm)
    finally:
        sys.settrace(previous)


def test_a_second_interrupt_while_the_worker_is_emptied(llm, usable, monkeypatch):
    executor = llm.engine.executor
    for name in ("discard", "stop"):
        settle(llm, "async_overlap")
        with monkeypatch.context() as patch:
            patch.setattr(executor, "fetch", raising_at(3, True, executor.fetch, KeyboardInterrupt()))
            patch.setattr(
                executor.worker, name, raising_at(1, False, getattr(executor.worker, name), KeyboardInterrupt())
            )
            with pytest.raises(KeyboardInterrupt):
                llm.generate(PROMPTS, LONG, use_tqdm=False)
        llm.stats()
        check_empty(llm)


def test_a_closed_stream_leaves_no_thread(llm, usable):
    before = set(threading.enumerate())
    for strategy in STRATEGIES:
        settle(llm, strategy)
        stream = llm.stream(PROMPTS, LONG)
        while not llm.engine.scheduler.num_on_host:
            next(stream)
        stream.close()
        check_empty(llm)
        assert set(threading.enumerate()) == before


def test_a_stream_that_nobody_reads_leaves_no_thread_for_long(llm, usable, monkeypatch):
    """Requests are under way, but nothing runs: the worker's thread ends by itself."""
    monkeypatch.setattr(worker_module, "IDLE_SECONDS", 0.02)
    before = set(threading.enumerate())
    settle(llm, "async_overlap")
    stream = llm.stream(PROMPTS, LONG)
    while not llm.engine.scheduler.num_on_host:
        next(stream)
    for thread in set(threading.enumerate()) - before:
        thread.join(60)
        assert not thread.is_alive()
    tokens = sum(len(output.outputs[0].token_ids) for output in stream)
    assert tokens > 0
    assert set(threading.enumerate()) == before
