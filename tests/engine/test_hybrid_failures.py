"""The host fails in every way: the requests it bears on end with the error, the others' tokens stay right."""

import collections
import dataclasses
import sys
import threading
import types

import numpy as np
import pytest

from apex_jax import SamplingParams
from apex_jax.scheduler import Decision

from .hybrid import HOST_ROWS, OPTIONS, Reference, beginner, check_empty, draw_load, run, settle, unsettle

STRATEGIES = ("layer_sync", "asymmetric_pipelining", "async_overlap", "fast_lane")
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)


@pytest.fixture(scope="module")
def reference(dense):
    return Reference(dense)


@pytest.fixture(scope="module")
def llm(make):
    return make(strategy="async_overlap", **OPTIONS)


def fails_at(original, number, fail):
    """Return `original` that calls `fail` with its arguments first, at its call of that number and at no other."""
    calls = iter(range(1, 1 << 30))

    def function(*args):
        if next(calls) == number:
            fail(*args)
        return original(*args)

    return function


def break_down(patch, llm, place, number, fail):
    """Let one of the functions that host jobs call fail once."""
    executor = llm.engine.executor
    worker = executor.worker
    if place == "deliver":
        patch.setattr(executor.device, "deliver", fails_at(executor.device.deliver, number, fail))
    elif place in ("boundary", "gather"):
        # What comes from the device is waited for in the job.
        original, calls = getattr(executor.device, place), iter(range(1, 1 << 30))

        def function(*args, **kwargs):
            arrival = original(*args, **kwargs)
            if arrival is None or next(calls) != number:
                return arrival
            return lambda: (fail(), arrival())[1]

        patch.setattr(executor.device, place, function)
    else:
        programs = vars(worker.programs)
        patch.setattr(
            worker, "programs", types.SimpleNamespace(**(programs | {place: fails_at(programs[place], number, fail)}))
        )


def serve(llm, reference, config, seed, *, moves=0.25):
    """Serve a random load and check the tokens that came; returns the generations that ended with an error."""
    rng = np.random.default_rng(seed)
    scheduler = settle(llm, STRATEGIES[seed % 3])
    unsettle(scheduler, rng, chance=moves)
    jobs = run(llm, draw_load(rng, 10, config.vocab_size), rng, cancel=0)
    reference.check(jobs)
    check_empty(llm)
    generations = [generation for job in jobs for generation in job.generations]
    failed = [generation for generation in generations if generation.host_error is not None]
    assert all(generation.stream.finish_reason == "abort" for generation in failed)
    assert sum(generation.stream.finish_reason == "abort" for generation in generations) == len(failed)
    return failed, len(generations)


@pytest.fixture
def usable(llm, reference, config):
    """After the test no thread is left, and all requests of the next load have the right tokens."""
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) == before
    failed, _ = serve(llm, reference, config, seed=100)
    assert not failed
    assert set(threading.enumerate()) == before


@pytest.mark.parametrize("place", ["attend", "write", "read", "deliver", "boundary", "gather"])
@pytest.mark.parametrize("error", [MemoryError("no memory is left"), OSError("the kernel fails")], ids=["memory", "os"])
def test_an_error_in_a_job_ends_the_requests_it_bears_on(place, error, llm, reference, config, usable, monkeypatch):
    def fail(*_):
        raise error

    ended = 0
    for seed in range(6):
        with monkeypatch.context() as patch:
            break_down(patch, llm, place, 1 + 3 * seed, fail)
            failed, count = serve(llm, reference, config, seed)
        assert all(generation.host_error is error for generation in failed)
        assert all(generation.stream.stop_reason == f"{type(error).__name__}: {error}" for generation in failed)
        assert len(failed) < count - 2
        ended += len(failed)
    assert ended > 1


@pytest.mark.parametrize("place", ["attend", "write"])
def test_lost_pages_end_all_that_had_some(place, llm, reference, config, usable, monkeypatch):
    """Also those whose pages were read after the loss, on their way to the device."""
    error = MemoryError("no memory is left")

    def lose(kv, *_):
        kv.delete()
        raise error

    ended = 0
    for seed in range(24):
        with monkeypatch.context() as patch:
            break_down(patch, llm, place, 1 + seed, lose)
            failed, count = serve(llm, reference, config, seed, moves=0.4)
        assert all(generation.host_error is error for generation in failed)
        assert len(failed) < count
        ended += len(failed)
    assert ended > 24


def test_the_worker_thread_ends(llm, reference, config, usable, monkeypatch):
    died = []
    monkeypatch.setattr(threading, "excepthook", lambda args: died.append(args.exc_type))

    def end(*_):
        if threading.current_thread().name == "apex-jax-host":
            sys.exit("of this thread")

    ended = 0
    for seed in range(12):
        place = ("attend", "write", "read", "boundary")[seed % 4]
        with monkeypatch.context() as patch:
            break_down(patch, llm, place, 1 + seed, end)
            failed, count = serve(llm, reference, config, seed)
        assert all("a thread ended in a host job: SystemExit" in str(generation.host_error) for generation in failed)
        assert len(failed) < count - 2
        ended += len(failed)
    assert ended > 2
    assert died
    assert set(died) == {SystemExit}


@pytest.mark.parametrize("block", range(3))
def test_no_thread_can_be_started(block, llm, reference, config, usable, monkeypatch):
    """All requests are served, and none waits on the host for somebody who asks for its pages."""
    start, executor = threading.Thread.start, llm.engine.executor
    arrived, submit, forget, store = executor.arrived, executor.submit, executor.forget, executor.worker.store
    fetches, under_way, stores = [], {}, []

    def refuse(thread):
        if thread.name == "apex-jax-host":
            raise RuntimeError("can't start new thread")
        start(thread)

    def note(plan):
        for landing in plan.landings:
            del under_way[landing.request_id]
        fetches.extend(plan.fetches)
        under_way.update((fetch.request_id, fetch) for fetch in plan.fetches)
        return submit(plan)

    def note_forgotten(request_id):
        del under_way[request_id]
        forget(request_id)

    def note_store(*args, **kwargs):
        stores.append(store(*args, **kwargs))
        return stores[-1]

    def look():
        ended = arrived()
        assert ended == list(under_way)
        assert all(job.ended for job in stores)
        return ended

    monkeypatch.setattr(executor, "arrived", look)
    monkeypatch.setattr(executor, "submit", note)
    monkeypatch.setattr(executor, "forget", note_forgotten)
    monkeypatch.setattr(executor.worker, "store", note_store)
    before = llm.stats()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        for seed in range(2 * block, 2 * block + 2):
            failed, _ = serve(llm, reference, config, seed)
            assert not failed
    after = llm.stats()
    assert fetches
    for name in ("host_tokens", "evictions", "landings"):
        assert getattr(after, name) > getattr(before, name), name


def test_a_failed_fetch_of_the_only_request_is_told(llm, usable, monkeypatch):
    """Nothing else runs whose end could bring the news."""
    error = MemoryError("no memory is left")

    def fail(*_):
        raise error

    settle(llm, "layer_sync").policy = Away()
    with monkeypatch.context() as patch:
        break_down(patch, llm, "read", 1, fail)
        (output,) = llm.generate([5, 17, 40], GREEDY, use_tqdm=False)
    assert output.finished
    (completion,) = output.outputs
    assert (completion.finish_reason, completion.stop_reason) == ("abort", "MemoryError: no memory is left")
    assert 0 < len(completion.token_ids) < 12
    check_empty(llm)


@pytest.mark.parametrize("how", ["generate", "stream"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_others_of_the_same_call_lose_nothing(how, strategy, llm, greedy, usable, monkeypatch, caplog):
    error = MemoryError("no memory is left")

    def fail(*_):
        raise error

    settle(llm, strategy)
    prompts = [[number, 3, 40 + number] for number in range(10)]
    params = dataclasses.replace(GREEDY, n=2)
    expected = [greedy(prompt, 12) for prompt in prompts]
    with monkeypatch.context() as patch:
        break_down(patch, llm, "attend", 3, fail)
        if how == "generate":
            outputs = llm.generate(prompts, params, use_tqdm=False)
            ends = [[(c.token_ids, c.finish_reason, c.stop_reason) for c in output.outputs] for output in outputs]
            assert all(output.finished for output in outputs)
        else:
            ends = joined(llm.stream(prompts, params))
    whole = failed = 0
    for tokens, completions in zip(expected, ends, strict=True):
        for found, *end in completions:
            if end == ["length", None]:
                assert found == tokens
                whole += 1
            else:
                assert end == ["abort", "MemoryError: no memory is left"]
                assert found == tokens[: len(found)]
                failed += 1
    assert (whole + failed, failed) == (20, sum(record.args[0] for record in caplog.records))
    assert 1 <= failed <= HOST_ROWS
    assert [record.exc_info[1] for record in caplog.records] == [error]
    check_empty(llm)


def joined(stream):
    """Return for each prompt its two completions' tokens, finish and stop reason."""
    ends = collections.defaultdict(lambda: [([], None, None), ([], None, None)])
    for piece in stream:
        (completion,) = piece.outputs
        of_prompt = ends[int(piece.request_id)]
        found, finish, _ = of_prompt[completion.index]
        assert finish is None
        of_prompt[completion.index] = (
            found + completion.token_ids,
            completion.finish_reason,
            completion.stop_reason,
        )
    return [ends[number] for number in sorted(ends)]


class Away:
    """Evicts requests once all of them decode, and begins to fetch them back with the same plan."""

    def __init__(self):
        self.been = set()

    def decide(self, situation):
        stay = Decision(strategy="layer_sync", max_host_requests=HOST_ROWS)
        ids = tuple(situation.roster().arrivals)
        if situation.prefill_tokens or self.been.issuperset(ids):
            return stay
        self.been.update(ids)
        return dataclasses.replace(stay, evict=ids, fetch=ids)


def test_a_request_fetched_from_lost_pages_does_not_land(llm, usable, monkeypatch):
    """Its pages are read behind another one's store that has lost them: it must not go on with what is left there."""
    error = MemoryError("no memory is left")

    def lose(kv, *_):
        kv.delete()
        raise error

    settle(llm, "layer_sync").policy = Away()
    jobs = []
    with monkeypatch.context() as patch:
        # Two layers a request: the third store is of the second request, and takes the first one's pages along.
        break_down(patch, llm, "write", 3, lose)
        beginner(llm)(jobs, [[5, 17, 40], [3] * 15], GREEDY)
        while llm.engine.has_unfinished:
            llm.engine.step()
    assert [job.generations[0].host_error for job in jobs] == [error, error]
    check_empty(llm)


def test_a_loss_that_nobody_was_left_to_hear_of_does_not_reach_the_next(llm, greedy, usable, monkeypatch):
    def lose(kv, *_):
        kv.delete()
        raise MemoryError("no memory is left")

    settle(llm, "layer_sync").policy = Away()
    with monkeypatch.context() as patch:
        break_down(patch, llm, "write", 1, lose)
        jobs = []
        beginner(llm)(jobs, [5, 17, 40], GREEDY)
        engine = llm.engine
        while not engine.scheduler.evictions:
            engine.step()
        engine.abort(jobs[0].generations[0])
    assert engine.executor.worker.losses > 0
    settle(llm, "layer_sync")
    prompts = [[number] * 20 for number in range(8)]
    outputs = llm.generate(prompts, GREEDY, use_tqdm=False)
    assert [output.outputs[0].token_ids for output in outputs] == [greedy(prompt, 12) for prompt in prompts]
