"""The host worker: jobs in order on whichever thread comes first, errors that stay with their jobs, lost pages."""

import contextlib
import ctypes
import itertools
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from apex_jax.host_offload import HostKVConfig, HostWorker, allocate, native_attention_available
from apex_jax.host_offload import worker as worker_module

from ..compilations import counted_compilations

LAYERS, HEADS, KV_HEADS, WIDTH, PAGE, PAGES = 2, 4, 2, 16, 16, 8
ONE_PAGE = np.array([3], np.int32)
TABLE = np.array([[3, 5], [1, 0]], np.int32)


@pytest.fixture(scope="module", autouse=True)
def shared_programs():
    programs = worker_module.build_programs()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker_module, "build_programs", lambda sliding_window: programs)
        yield


@pytest.fixture
def worker():
    shape = HostKVConfig(num_layers=LAYERS, num_kv_heads=KV_HEADS, head_width=WIDTH, page_size=PAGE, dtype=jnp.float32)
    threads = set(threading.enumerate())
    made = HostWorker(allocate(shape, PAGES * shape.page_bytes), num_heads=HEADS)
    yield made
    made.stop()
    # One that an exception from outside ends in its last line stays listed.
    assert {thread for thread in threading.enumerate() if thread.is_alive()} == threads


@pytest.fixture
def rng():
    return np.random.default_rng(4)


class Gate:
    """Input of a job that comes when the test lets it."""

    def __init__(self, array):
        self.asked, self.open, self.array = threading.Event(), threading.Event(), array

    def __call__(self):
        self.asked.set()
        assert self.open.wait(60)
        return self.array


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def tiles(rng, count=1):
    return rng.standard_normal((count, KV_HEADS, 2, PAGE, WIDTH)).astype(np.float32)


def heads(rng, rows=2):
    return rng.standard_normal((rows, HEADS + 2 * KV_HEADS, WIDTH)).astype(np.float32)


def attended(packed, held, lengths):
    """Attention in float64 over `held` [B, S, 2, K, H] with the new keys and values at the end."""
    out = np.zeros((len(packed), HEADS, WIDTH))
    for row, length in enumerate(lengths):
        for head in range(HEADS):
            group = head // (HEADS // KV_HEADS)
            keys = held[row, : length - 1, 0, group].astype(np.float64)
            values = held[row, : length - 1, 1, group].astype(np.float64)
            keys = np.vstack([keys, packed[row, HEADS + group]])
            values = np.vstack([values, packed[row, HEADS + KV_HEADS + group]])
            scores = keys @ packed[row, head].astype(np.float64) / np.sqrt(WIDTH)
            weights = np.exp(scores - scores.max())
            out[row, head] = weights @ values / weights.sum()
    return out


def test_stored_pages_are_attended_to_and_come_back(worker, rng):
    first, second = tiles(rng, 2), tiles(rng)
    worker.store(1, lambda: first, np.array([3, 5], np.int32))
    worker.store(1, lambda: second, np.array([1], np.int32))
    packed, lengths = heads(rng), np.array([20, 7], np.int32)
    found = worker.wait(worker.attend(1, lambda: packed, TABLE, lengths, np.copy))
    # [pages, K, 2, S, H] -> [tokens, 2, K, H]
    long = np.moveaxis(first, (3, 2, 1), (1, 2, 3)).reshape(2 * PAGE, 2, KV_HEADS, WIDTH)
    short = np.moveaxis(second, (3, 2, 1), (1, 2, 3)).reshape(PAGE, 2, KV_HEADS, WIDTH)
    held = np.stack([long, np.concatenate([short, np.zeros_like(short)])])
    np.testing.assert_allclose(found, attended(packed, held, lengths), atol=1e-5)

    moved = worker.wait(worker.load(1, np.array([5, -1, 1], np.int32), np.copy))
    expected = first[1].copy()
    expected[:, 0, 3], expected[:, 1, 3] = packed[0, HEADS:-KV_HEADS], packed[0, -KV_HEADS:]
    np.testing.assert_array_equal(moved[0], expected)
    np.testing.assert_array_equal(moved[1], np.zeros_like(expected))
    expected = second[0].copy()
    expected[:, 0, 6], expected[:, 1, 6] = packed[1, HEADS:-KV_HEADS], packed[1, -KV_HEADS:]
    np.testing.assert_array_equal(moved[2], expected)
    assert not worker.wait(worker.load(0, ONE_PAGE, np.copy)).any()


def test_rows_of_length_zero_take_no_part(worker, rng):
    before = tiles(rng, 2)
    worker.store(0, lambda: before, np.array([0, 3], np.int32))
    packed = heads(rng)
    found = worker.wait(worker.attend(0, lambda: packed, TABLE, np.zeros(2, np.int32), np.copy))
    assert not found.any()
    np.testing.assert_array_equal(worker.wait(worker.load(0, np.array([0, 3], np.int32), np.copy)), before)


class TestOrder:
    def test_is_that_of_submission(self, worker, rng):
        """A page is read before it is written to again, though nobody waits in between."""
        contents = [tiles(rng) for _ in range(20)]
        ended, loads = [], []
        worker.observers.append(ended.append)
        jobs = []
        for content in contents:
            jobs.append(worker.store(0, lambda content=content: content, ONE_PAGE))
            loads.append(worker.load(0, ONE_PAGE, np.copy))
            jobs.append(loads[-1])
        # The last result first.
        for content, load in reversed(list(zip(contents, loads, strict=True))):
            np.testing.assert_array_equal(worker.wait(load), content)
        worker.stop()
        assert ended == jobs
        assert all(job.begun_ns <= job.fetched_ns <= job.computed_ns <= job.ended_ns for job in jobs)
        assert all(one.ended_ns <= other.begun_ns for one, other in itertools.pairwise(jobs))

    def test_who_waits_runs_what_stands_before(self, worker, rng):
        """The thread is kept in one job; the jobs behind it are run by the caller once that has ended."""
        gate = Gate(tiles(rng))
        names = []
        stuck = worker.store(0, gate, ONE_PAGE)
        assert gate.asked.wait(60)
        worker.observers.append(lambda job: names.append(threading.current_thread().name))
        packed, none = heads(rng), np.zeros(2, np.int32)
        behind = [
            worker.attend(0, lambda: packed, TABLE, none, np.copy, wake=False),
            worker.attend(1, lambda: packed, TABLE, none, np.copy, wake=False),
        ]
        assert not any(job.ended for job in (stuck, *behind))
        opener = threading.Timer(0.05, gate.open.set)
        opener.start()
        worker.wait(behind[1])
        opener.join()
        assert [job.ended for job in (stuck, *behind)] == [True] * 3
        assert len(names) == 3
        assert names[0] == "apex-jax-host"

    def test_all_observers_are_told_while_they_listen(self, worker):
        first, second = [], []
        worker.observers += [first.append, second.append]
        jobs = [worker.load(0, ONE_PAGE, np.copy)]
        worker.wait(jobs[0])
        worker.observers.remove(first.append)
        jobs.append(worker.load(1, ONE_PAGE, np.copy))
        worker.wait(jobs[1])
        assert (first, second) == (jobs[:1], jobs)

    def test_without_a_wake_no_thread_is_started(self, worker, rng):
        before = set(threading.enumerate())
        packed = heads(rng)
        job = worker.attend(0, lambda: packed, TABLE, np.zeros(2, np.int32), np.copy, wake=False)
        assert set(threading.enumerate()) == before
        assert not job.ended
        worker.wait(job)
        assert set(threading.enumerate()) == before

    def test_waiting_for_what_was_never_submitted(self, worker):
        lost = worker_module.HostJob(kind="load", layer=0, rows=1)
        with pytest.raises(RuntimeError, match="never submitted"):
            worker.wait(lost)


class TestThread:
    def test_ends_by_itself(self, worker, rng, monkeypatch):
        monkeypatch.setattr(worker_module, "IDLE_SECONDS", 0.01)
        worker.wait(worker.load(0, ONE_PAGE, np.copy))
        for _ in range(3):
            thread = worker.thread
            if thread is not None:
                thread.join(60)
                assert not thread.is_alive()
            assert worker.thread is None
            worker.wait(worker.load(0, ONE_PAGE, np.copy))

    def test_stop_runs_what_is_queued_and_a_later_job_starts_another(self, worker, rng):
        for _ in range(3):
            content = tiles(rng)
            jobs = [worker.store(0, lambda content=content: content, ONE_PAGE) for _ in range(5)]
            thread = worker.thread
            worker.stop()
            assert thread is not None
            assert not thread.is_alive()
            assert all(job.ended for job in jobs)
            np.testing.assert_array_equal(worker.wait(worker.load(0, ONE_PAGE, np.copy)), content)
        worker.stop()
        worker.stop()

    def test_discard_drops_what_is_queued_but_not_what_is_under_way(self, worker, rng):
        content, gate = tiles(rng), Gate(tiles(rng))
        worker.wait(worker.store(0, lambda: content, np.array([2], np.int32)))
        under_way = worker.store(0, gate, ONE_PAGE)
        assert gate.asked.wait(60)
        dropped = [worker.store(0, lambda: tiles(rng), np.array([2], np.int32)) for _ in range(3)]
        opener = threading.Timer(0.05, gate.open.set)
        opener.start()
        worker.discard()
        opener.join()
        assert under_way.ended
        assert not any(job.ended for job in dropped)
        with pytest.raises(RuntimeError, match="discarded"):
            worker.wait(dropped[0])
        np.testing.assert_array_equal(worker.wait(worker.load(0, np.array([2, 3], np.int32), np.copy))[:1], content)

    def test_that_cannot_be_started_is_not_needed(self, worker, rng, monkeypatch, caplog):
        """Who waits runs the jobs, `catch_up` those that nobody waits for; said once, and tried again each time."""
        contents, attempts = [tiles(rng) for _ in range(4)], []
        stores = []
        with monkeypatch.context() as patch:

            def start(thread):
                attempts.append(thread.name)
                raise RuntimeError("can't start new thread")

            patch.setattr(threading.Thread, "start", start)
            for content in contents:
                stores.append(worker.store(0, lambda content=content: content, ONE_PAGE))
                np.testing.assert_array_equal(worker.wait(worker.load(0, ONE_PAGE, np.copy)), content)
            left = [worker.store(1, lambda content=content: content, ONE_PAGE) for content in contents]
            assert not any(job.ended for job in left)
            worker.catch_up()
            assert all(job.ended and job.error is None for job in (*stores, *left))
            behind = worker.load(1, ONE_PAGE, np.copy)
        assert attempts == ["apex-jax-host"] * 13
        assert [record.getMessage() for record in caplog.records] == [
            "No thread can be started for the host's jobs; the caller's runs them: "
            'RuntimeError("can\'t start new thread")'
        ]
        # The thread that the next one starts comes to what was left as well, and nobody else does.
        last = worker.load(0, ONE_PAGE, np.copy)
        assert worker.thread is not None
        worker.catch_up()
        wait_until(lambda: behind.ended)
        np.testing.assert_array_equal(worker.wait(behind), contents[-1])
        np.testing.assert_array_equal(worker.wait(last), contents[-1])

    @pytest.mark.parametrize("seed", range(3))
    def test_jobs_from_a_caller_that_waits_stops_and_discards_at_random(self, worker, seed, monkeypatch):
        monkeypatch.setattr(worker_module, "IDLE_SECONDS", 0.001)
        rng = np.random.default_rng(seed)
        expected, jobs = np.zeros((1, KV_HEADS, 2, PAGE, WIDTH), np.float32), []
        for _ in range(300):
            action = rng.integers(8)
            if action < 3:
                expected = tiles(rng)
                jobs.append(worker.store(0, lambda content=expected: content, ONE_PAGE))
            elif action < 5:
                np.testing.assert_array_equal(worker.wait(worker.load(0, ONE_PAGE, np.copy)), expected)
            elif action == 5 and jobs:
                worker.wait(jobs[rng.integers(len(jobs))])
            elif action == 6:
                worker.stop()
                assert all(job.ended for job in jobs)
            elif action == 7:
                worker.stop()
                worker.discard()


def boom(*_):
    raise OSError("no such bandwidth")


class TestErrors:
    def test_stay_with_their_jobs(self, worker, rng):
        content, packed, none = tiles(rng), heads(rng), np.zeros(2, np.int32)
        worker.store(0, lambda: content, ONE_PAGE)
        failed = [
            worker.store(0, boom, ONE_PAGE),
            worker.attend(0, boom, TABLE, none, np.copy),
            worker.attend(0, lambda: packed, TABLE, none, boom),
            worker.load(0, ONE_PAGE, boom),
        ]
        np.testing.assert_array_equal(worker.wait(worker.load(0, ONE_PAGE, np.copy)), content)
        for job in failed:
            with pytest.raises(OSError, match="no such bandwidth"):
                worker.wait(job)
            assert job.error is not None
        assert worker.losses == 0

    @pytest.mark.skipif(not native_attention_available(WIDTH), reason="the native attention library is not built")
    def test_of_the_kernel_take_the_pages_along(self, worker, rng):
        """A length above the page table; the array was donated to the call that failed."""
        content, packed = tiles(rng), heads(rng)
        worker.store(0, lambda: content, ONE_PAGE)
        job = worker.attend(0, lambda: packed, TABLE, np.array([4, 2 * PAGE + 1], np.int32), np.copy)
        with pytest.raises((jax.errors.JaxRuntimeError, ValueError), match="row 1 has length 33"):
            worker.wait(job)
        assert worker.losses == 1
        assert not worker.wait(worker.load(0, ONE_PAGE, np.copy)).any()

    @pytest.mark.parametrize("kind", ["attend", "write"])
    def test_after_which_the_pages_are_gone_are_counted(self, worker, rng, kind, monkeypatch):
        """The layer is zero afterwards; the other layers keep what they hold."""
        content, packed = tiles(rng), heads(rng)
        for layer in range(LAYERS):
            worker.wait(worker.store(layer, lambda: content, ONE_PAGE))

        def losing(kv, *_):
            kv.delete()
            raise MemoryError("out of main memory")

        broken = worker_module.HostPrograms(**(vars(worker.programs) | {kind: losing}))
        with monkeypatch.context() as patch:
            patch.setattr(worker, "programs", broken)
            if kind == "attend":
                job = worker.attend(1, lambda: packed, TABLE, np.zeros(2, np.int32), np.copy)
            else:
                job = worker.store(1, lambda: content, ONE_PAGE)
            with pytest.raises(MemoryError, match="out of main memory"):
                worker.wait(job)
        assert worker.losses == 1
        assert not worker.wait(worker.load(1, ONE_PAGE, np.copy)).any()
        np.testing.assert_array_equal(worker.wait(worker.load(0, ONE_PAGE, np.copy)), content)
        worker.wait(worker.store(1, lambda: content, ONE_PAGE))
        np.testing.assert_array_equal(worker.wait(worker.load(1, ONE_PAGE, np.copy)), content)

    def test_that_end_the_thread(self, worker, rng, monkeypatch):
        """Who waits gets an ordinary error; the jobs behind run all the same, and another thread can be started."""
        died = []
        monkeypatch.setattr(threading, "excepthook", lambda args: died.append(args.exc_type))
        content, gate = tiles(rng), Gate(None)

        def ending():
            gate()
            sys.exit("of this thread")

        fatal = worker.store(0, ending, np.array([1], np.int32))
        assert gate.asked.wait(60)
        behind = worker.store(0, lambda: content, ONE_PAGE)
        thread = worker.thread
        gate.open.set()
        thread.join(60)
        with pytest.raises(RuntimeError, match="a thread ended in a host job: SystemExit") as caught:
            worker.wait(fatal)
        assert isinstance(caught.value.__cause__, SystemExit)
        assert died == [SystemExit]
        worker.wait(behind)
        np.testing.assert_array_equal(worker.wait(worker.load(0, ONE_PAGE, np.copy)), content)

    def test_from_outside_that_end_the_thread_anywhere(self, worker, rng, monkeypatch):
        """Exceptions sent to the thread, whatever it is doing, leave nobody waiting and no lock held."""
        monkeypatch.setattr(threading, "excepthook", lambda args: None)
        # One that strikes in a callback of the garbage collector is not raised.
        monkeypatch.setattr(sys, "unraisablehook", lambda args: None)
        content = tiles(rng)
        send, struck, over = ctypes.pythonapi.PyThreadState_SetAsyncExc, [0], threading.Event()

        def strike():
            while not over.wait(rng.uniform(0, 2e-4)):
                thread = worker.thread
                if thread is not None and thread.is_alive():
                    send(ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit))
                    struck[0] += 1

        striker = threading.Thread(target=strike)
        striker.start()
        try:
            for number in itertools.count():
                if number >= 3000 and struck[0] > 100:
                    break
                job = worker.store(0, lambda: content, ONE_PAGE) if number % 2 else worker.load(0, ONE_PAGE, np.copy)
                with contextlib.suppress(RuntimeError):
                    worker.wait(job)
                assert job.error is None or isinstance(job.error.__cause__, SystemExit)
        finally:
            over.set()
            striker.join()
        worker.stop()
        worker.wait(worker.store(0, lambda: content, ONE_PAGE))
        np.testing.assert_array_equal(worker.wait(worker.load(0, ONE_PAGE, np.copy)), content)

    def test_an_interrupt_in_the_calling_thread_is_raised_there(self, worker, rng):
        def interrupted():
            raise KeyboardInterrupt

        packed = heads(rng)
        behind = worker.attend(0, interrupted, TABLE, np.zeros(2, np.int32), np.copy, wake=False)
        with pytest.raises(KeyboardInterrupt):
            worker.wait(behind)
        worker.discard()
        worker.wait(worker.attend(0, lambda: packed, TABLE, np.zeros(2, np.int32), np.copy))

    def test_an_interrupt_before_the_thread_has_started(self, worker, rng, monkeypatch):
        with monkeypatch.context() as patch:

            def start(thread):
                raise KeyboardInterrupt

            patch.setattr(threading.Thread, "start", start)
            with pytest.raises(KeyboardInterrupt):
                worker.load(0, ONE_PAGE, np.copy)
        worker.discard()
        content = tiles(rng)
        worker.store(0, lambda: content, ONE_PAGE)
        np.testing.assert_array_equal(worker.wait(worker.load(0, ONE_PAGE, np.copy)), content)

    def test_an_interrupt_while_the_thread_is_joined(self, worker, rng, monkeypatch):
        gate = Gate(tiles(rng))
        worker.store(0, gate, ONE_PAGE)
        assert gate.asked.wait(60)
        with monkeypatch.context() as patch:

            def join(thread, timeout=None):
                raise KeyboardInterrupt

            patch.setattr(threading.Thread, "join", join)
            with pytest.raises(KeyboardInterrupt):
                worker.stop()
        gate.open.set()
        worker.discard()
        # Were it still stopping, each job would need a new thread.
        monkeypatch.setattr(worker_module, "IDLE_SECONDS", 60)
        worker.wait(worker.load(0, ONE_PAGE, np.copy))
        thread = worker.thread
        worker.wait(worker.load(0, ONE_PAGE, np.copy))
        assert worker.thread is thread is not None


def test_warm_up_compiles_all_shapes_and_changes_no_page(worker, rng):
    content = tiles(rng, PAGES)
    every = np.arange(PAGES, dtype=np.int32)
    worker.wait(worker.store(0, lambda: content, every))
    worker.warm_up(rows=(2, 3), width=2, pages=(1, 2, PAGES))
    np.testing.assert_array_equal(worker.wait(worker.load(0, every, np.copy)), content)
    packed, table, none = heads(rng, 3), np.zeros((3, 2), np.int32), np.zeros(3, np.int32)
    with counted_compilations() as compilations:
        worker.wait(worker.attend(1, lambda: packed, table, none, np.copy))
        for count in (1, 2):
            pages = every[:count]
            worker.wait(worker.store(1, lambda pages=pages: content[pages], pages))
            worker.wait(worker.load(1, pages, np.copy))
        assert not compilations
        worker.wait(worker.load(1, every[:7], np.copy))
        assert compilations


def test_the_pages_stay_on_their_device(worker, rng):
    """Programs that take the pages must not move them to another device, JAX's default one."""
    assert all(layer.committed for layer in worker.layers)
    for layer in range(LAYERS):
        worker.wait(worker.store(layer, lambda: tiles(rng), ONE_PAGE))
    assert {device for layer in worker.layers for device in layer.devices()} == {jax.devices("cpu")[0]}
    assert all(layer.committed for layer in worker.layers)


def test_who_waits_is_told_when_the_job_ends_and_not_after_the_next(worker, rng):
    """The thread has the next job in its hands at once; that one's input comes only when the first has been told."""
    first, second = Gate(tiles(rng)), Gate(tiles(rng))
    jobs = [worker.store(0, gate, ONE_PAGE) for gate in (first, second)]
    assert first.asked.wait(60)
    opener = threading.Timer(0.05, first.open.set)
    opener.start()
    worker.wait(jobs[0])
    assert not jobs[1].ended
    opener.join()
    second.open.set()
    worker.wait(jobs[1])
