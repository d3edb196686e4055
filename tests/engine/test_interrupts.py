"""Interrupts, closed iterators, failures and threads: nobody's pages stay taken, and the next tokens are right."""

import dataclasses
import gc
import random
import signal
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest

from apex_jax import SamplingParams
from apex_jax.engine.shared_engine import FairLock

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
LONG = SamplingParams(temperature=0, max_tokens=200, ignore_eos=True)
PROMPTS = [[5, 17, 40], [3] * 30, [9, 8]]


@pytest.fixture(scope="module")
def expected(greedy):
    return [greedy(prompt, 12) for prompt in PROMPTS]


@pytest.fixture
def usable(llm, expected, whole):
    """After the test: nothing is held, no thread is left, and the tokens are right."""
    before = set(threading.enumerate())
    yield
    whole(llm)
    assert set(threading.enumerate()) == before
    outputs = llm.generate(PROMPTS, GREEDY, use_tqdm=False)
    assert [output.outputs[0].token_ids for output in outputs] == expected
    whole(llm)


def raising_at(calls, error, original):
    """Return `original` that raises `error` at its call of that number, before or after its work."""
    count = 0

    def method(*args, **kwargs):
        nonlocal count
        count += 1
        if count == calls[0]:
            if calls[1]:
                original(*args, **kwargs)
            raise error
        return original(*args, **kwargs)

    return method


PLACES = [
    ("executor", "fetch"),
    ("executor", "submit"),
    ("device", "assign_slot"),
    ("device", "begin"),
    ("device", "layers"),
    ("device", "sample"),
    ("scheduler", "schedule"),
    ("scheduler", "update"),
    ("scheduler", "add"),
    ("engine", "step"),
    ("engine", "add"),
    ("engine", "abort"),
    ("engine", "_submit"),
    ("engine", "_receive"),
]


def leave_behind(llm):
    """Begin requests that nobody waits for."""
    stream = llm.stream(PROMPTS, LONG)
    next(stream)
    stream.close()


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("place", PLACES, ids=lambda place: place[1])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("the device is lost")], ids=["key", "device"])
def test_an_exception_anywhere(error, place, after, llm, usable, monkeypatch):
    engine = llm.engine
    executor = engine.executor
    owner = {"executor": executor, "device": executor.device, "scheduler": engine.scheduler, "engine": engine}[place[0]]
    for call in (1, 2):
        with monkeypatch.context() as patch:
            owner = engine.scheduler if place[0] == "scheduler" else owner
            patch.setattr(owner, place[1], raising_at((call, after), error, getattr(owner, place[1])))
            # What is left behind is only aborted by the next call.
            with pytest.raises((type(error), RuntimeError)):
                assert not (leave_behind(llm), llm.generate(PROMPTS, LONG, use_tqdm=False), llm.stats())


@pytest.mark.parametrize("seed", range(12))
def test_a_traced_interrupt_at_any_line(seed, llm, usable):
    """KeyboardInterrupt after a random number of lines of the engine's own files, as a signal may come there."""
    rng = random.Random(seed)
    left = rng.randrange(1, 6000)

    def trace(frame, event, _):
        nonlocal left
        if "apex_jax" not in frame.f_code.co_filename and "scheduler" not in frame.f_code.co_filename:
            return None
        left -= event == "line"
        if event == "line" and left == 0:
            raise KeyboardInterrupt
        return trace

    def run_until_interrupted():
        while True:
            if seed % 2:
                for _ in llm.stream(PROMPTS, LONG):
                    pass
            else:
                llm.generate(PROMPTS, LONG, use_tqdm=False)

    traced(trace, run_until_interrupted)
    gc.collect()


def traced(trace, function):
    previous = sys.gettrace()
    try:
        sys.settrace(trace)
        with pytest.raises(KeyboardInterrupt):
            function()
    finally:
        sys.settrace(previous)


def test_a_second_interrupt_while_the_engine_is_being_emptied(llm, usable, monkeypatch):
    executor = llm.engine.executor
    with monkeypatch.context() as patch:
        patch.setattr(executor, "fetch", raising_at((3, True), KeyboardInterrupt(), executor.fetch))
        patch.setattr(executor, "reset", raising_at((1, False), KeyboardInterrupt(), executor.reset))
        with pytest.raises(KeyboardInterrupt):
            llm.generate(PROMPTS, LONG, use_tqdm=False)


def test_an_interrupted_warm_up(llm, usable, monkeypatch):
    runner = llm.engine.executor.device.runner
    programs = runner.programs
    broken = raising_at((2, True), KeyboardInterrupt(), programs.decode_step)
    with monkeypatch.context() as patch:
        patch.setattr(runner, "programs", dataclasses.replace(programs, decode_step=broken))
        with pytest.raises(KeyboardInterrupt):
            llm.warm_up()


class TestIterators:
    def test_closed(self, llm, usable):
        stream = llm.stream(PROMPTS, LONG)
        next(stream)
        assert llm.stats().running == 3
        stream.close()
        assert llm.stats().running == 0

    def test_dropped(self, llm, usable):
        for _ in llm.stream(PROMPTS, LONG):
            break
        gc.collect()

    def test_never_started(self, llm, usable):
        before = llm.stats()
        stream = llm.stream(PROMPTS, LONG)
        assert llm.stats() == before
        del stream
        stream = llm.stream(PROMPTS, LONG)
        stream.close()
        assert llm.stats() == before

    def test_closed_by_the_collector_in_the_middle_of_an_iteration(self, llm, usable, monkeypatch):
        dropped = llm.stream([[1, 2]], LONG)
        next(dropped)
        streams = [dropped]
        policy = llm.engine.scheduler.policy

        class Collecting:
            def decide(self, situation):
                streams.clear()
                return policy.decide(situation)

        del dropped
        with monkeypatch.context() as patch:
            patch.setattr(llm.engine.scheduler, "policy", Collecting())
            llm.generate(PROMPTS, GREEDY, use_tqdm=False)


def test_a_failure_reaches_every_caller(llm, usable, monkeypatch):
    error = RuntimeError("the device is lost")
    streams = [llm.stream(prompt, LONG) for prompt in PROMPTS]
    for stream in streams:
        next(stream)
    with monkeypatch.context() as patch:
        patch.setattr(llm.engine.executor, "fetch", raising_at((1, False), error, llm.engine.executor.fetch))
        with pytest.raises(RuntimeError, match="device is lost"):
            llm.generate(PROMPTS, GREEDY, use_tqdm=False)
    for stream in streams:
        with pytest.raises(RuntimeError, match="the engine failed while this request was under way") as caught:
            list(stream)
        assert caught.value.__cause__ is error


def test_a_failure_of_work_that_nobody_wants_any_more_hurts_nobody(llm, usable, monkeypatch):
    """The last plan of a call holds rows of requests that have ended; its failure is not the next caller's."""
    llm.generate(PROMPTS, GREEDY, use_tqdm=False)
    executor, stale = llm.engine.executor, []
    submit, fetch = executor.submit, executor.fetch
    stream = llm.stream(PROMPTS, LONG)
    with monkeypatch.context() as patch:
        patch.setattr(executor, "submit", lambda plan: (stale.append(plan), submit(plan))[1])
        patch.setattr(executor, "fetch", lambda submitted: (stale.remove(submitted.plan), fetch(submitted))[1])
        next(stream)
    stream.close()

    def failing(submitted):
        assert submitted.plan not in stale
        return fetch(submitted)

    assert stale
    with monkeypatch.context() as patch:
        patch.setattr(executor, "fetch", failing)
        llm.generate(PROMPTS, GREEDY, use_tqdm=False)


class TestThreads:
    def test_several_at_once(self, llm, usable, greedy, draw):
        rng = np.random.default_rng(2)
        batches = [[draw(rng, int(n)) for n in rng.integers(1, 40, 5)] for _ in range(4)]
        found = {}

        def work(i):
            if i % 2:
                outputs = llm.generate(batches[i], GREEDY, use_tqdm=False)
                found[i] = [output.outputs[0].token_ids for output in outputs]
            else:
                parts = {}
                for output in llm.stream(batches[i], GREEDY):
                    parts.setdefault(int(output.request_id), []).extend(output.outputs[0].token_ids)
                found[i] = [parts[number] for number in sorted(parts)]

        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for i, batch in enumerate(batches):
            assert found[i] == [greedy(prompt, 12) for prompt in batch]

    def test_a_short_request_ends_while_a_long_one_of_another_thread_goes_on(self, llm, usable):
        started, ended = threading.Event(), []

        def long():
            for _ in llm.stream([1, 2], LONG):
                started.set()
            ended.append("long")

        thread = threading.Thread(target=long)
        thread.start()
        started.wait()
        llm.generate([3, 4], GREEDY, use_tqdm=False)
        ended.append("short")
        thread.join()
        assert ended == ["short", "long"]

    def test_a_thread_that_takes_a_lock_in_a_loop_lets_others_in(self):
        lock, taken, stop = FairLock(), threading.Event(), threading.Event()
        rounds, waits = [], []

        def loop():
            while not stop.is_set():
                with lock:
                    rounds.append(None)
                    taken.set()
                    stop.wait(0.001)

        thread = threading.Thread(target=loop)
        thread.start()
        taken.wait()
        while len(rounds) < 500 and len(waits) < 100:
            before = len(rounds)
            with lock:
                waits.append(len(rounds) - before)
        stop.set()
        thread.join()
        # With a plain lock about 25 rounds go by now and then.
        assert len(waits) == 100
        assert max(waits) < 10

    def test_an_interrupt_while_a_lock_is_taken_leaves_it_free(self, monkeypatch):
        interrupts = iter([True])

        class Interrupting:
            """A lock that is left with an interrupt, once."""

            def __init__(self, make=threading.RLock):
                self.lock = make()
                self.acquire, self.release = self.lock.acquire, self.lock.release

            def __enter__(self):
                return self.lock.__enter__()

            def __exit__(self, *_):
                self.lock.release()
                if next(interrupts, False):
                    raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(threading, "RLock", Interrupting)
            lock = FairLock()
        with pytest.raises(KeyboardInterrupt):
            lock.__enter__()
        thread = threading.Thread(target=lock.__enter__, daemon=True)
        thread.start()
        thread.join(timeout=20)
        assert not thread.is_alive()


SCRIPT = """
import dataclasses, signal, sys, threading
from apex_jax import LLM, LlamaConfig, SamplingParams
from apex_jax.models import random_weights

config = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1,
                     num_key_value_heads=1, head_dim=16, max_position_embeddings=65536)
options = {"max_num_seqs": 2}
if sys.argv[2] != "device_only":
    options = {"max_num_seqs": 1, "max_host_seqs": 1, "device_kv_tokens": 32768, "host_kv_bytes": 1 << 23}
llm = LLM.from_params(
    config, random_weights(config, 0, "float32"), page_size=128, strategy=sys.argv[2], **options
)
short = SamplingParams(temperature=0, max_tokens=8)
expected = llm.generate([[1, 2], [3]], short, use_tqdm=False)
endless = SamplingParams(temperature=0, max_tokens=None, ignore_eos=True)
before = set(threading.enumerate())
# A shell starts its background jobs with this signal ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
print("ready", flush=True)
try:
    if sys.argv[1] == "generate":
        llm.generate([[1, 2], [3]], endless, use_tqdm=False)
    else:
        for _ in llm.stream([[1, 2], [3]], endless):
            pass
except KeyboardInterrupt:
    stats = llm.stats()
    assert (stats.running, stats.waiting, stats.free_pages) == (0, 0, stats.num_pages), stats
    again = llm.generate([[1, 2], [3]], short, use_tqdm=False)
    assert [o.outputs for o in again] == [o.outputs for o in expected]
    for thread in set(threading.enumerate()) - before:
        assert thread.name == "apex-jax-host"
        thread.join(60)
        assert not thread.is_alive()
    if sys.argv[2] != "device_only":
        assert stats.host_tokens > 16, stats
    print("usable", flush=True)
"""


@pytest.mark.parametrize(
    ("call", "strategy"),
    [("generate", "device_only"), ("stream", "device_only"), ("generate", "async_overlap"), ("stream", "layer_sync")],
)
def test_a_real_signal(call, strategy):
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), call, strategy],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        watchdog = threading.Timer(100, process.kill)
        watchdog.start()
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            ready = process.stdout.readline()
            assert ready == "ready\n", process.stderr.read()
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(timeout=0.3)  # it is in the middle of an endless request by now
            process.send_signal(signal.SIGINT)
            output, errors = process.communicate()
        finally:
            watchdog.cancel()
            process.kill()
    assert (process.returncode, output) == (0, "usable\n"), errors
