"""The recorder and its file: against JSON written by hand, and against what goes wrong with files."""

import json
import threading

import pytest

import apex_jax
from apex_jax.tracing.recorder import TRACKS, Recorder, Span, Trace, TraceError, load
from apex_jax.tracing.trace_file import nest, save


def span(begin, end, track="host", name="attention", **args):
    return Span(track=track, name=name, begin_ns=begin, end_ns=end, args=args)


class TestRecorder:
    def test_keeps_what_it_is_given(self):
        recorder = Recorder(label="emulated")
        recorder.span("device", "layer", 10, 30, layer=2, rows=5)
        recorder.span("python", "iteration", 12, 40, iteration=7, strategy="async_overlap")
        recorder.span("waits", "device waits", 30, 30)
        trace = recorder.trace()
        assert trace.spans == (
            span(10, 30, "device", "layer", layer=2, rows=5),
            span(12, 40, "python", "iteration", iteration=7, strategy="async_overlap"),
            span(30, 30, "waits", "device waits"),
        )
        assert (trace.label, trace.dropped) == ("emulated", 0)
        assert trace.versions["apex_jax"] == apex_jax.__version__
        assert {"python", "jax", "jaxlib", "numpy"} <= trace.versions.keys()

    def test_forgets_the_oldest_and_says_how_many(self):
        recorder = Recorder(max_events=3)
        for number in range(10):
            recorder.span("host", "attention", number, number + 1)
        trace = recorder.trace()
        assert [s.begin_ns for s in trace.spans] == [7, 8, 9]
        assert trace.dropped == 7

    def test_threads_lose_nothing(self):
        recorder = Recorder(max_events=100_000)
        start = threading.Barrier(4)

        def record(thread):
            start.wait()
            for number in range(5000):
                recorder.span("host", "attention", number, number + 1, layer=thread)

        threads = [threading.Thread(target=record, args=(thread,)) for thread in range(4)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            recorder.trace()
        for thread in threads:
            thread.join()
        trace = recorder.trace()
        assert trace.dropped == 0
        for thread in range(4):
            assert [s.begin_ns for s in trace.spans if s.args["layer"] == thread] == [*range(5000)]

    def test_refuses(self):
        with pytest.raises(ValueError, match="max_events is 0; at least 1"):
            Recorder(max_events=0)
        recorder = Recorder()
        with pytest.raises(ValueError, match="no track 'gpu'; the tracks are device, host, transfers, waits, python"):
            recorder.span("gpu", "layer", 0, 1)
        with pytest.raises(ValueError, match="span 'layer' ends at 4 ns, before it begins at 5 ns"):
            recorder.span("device", "layer", 5, 4)
        assert recorder.trace().spans == ()


def test_nesting_by_hand():
    """Inner spans share their outer one's row; those that overlap otherwise get rows of their own."""
    outer, inner, beside, after = span(0, 10), span(2, 5), span(4, 12), span(10, 11)
    assert list(nest([after, beside, inner, outer])) == [(outer, 0, 0), (inner, 0, 1), (beside, 1, 0), (after, 0, 0)]


BY_HAND = {
    "displayTimeUnit": "ms",
    "otherData": {
        "format": "apex_jax trace 1",
        "label": "emulated",
        "versions": {"apex_jax": "9.9"},
        "dropped_events": 4,
        "origin_ns": 1000,
    },
    "traceEvents": [
        {"ph": "M", "name": "process_name", "pid": 1, "tid": 0, "args": {"name": "apex_jax"}},
        {"ph": "M", "name": "thread_name", "pid": 1, "tid": 1000, "args": {"name": "device"}},
        {"ph": "M", "name": "thread_sort_index", "pid": 1, "tid": 1000, "args": {"sort_index": 1000}},
        {"ph": "M", "name": "thread_name", "pid": 1, "tid": 2000, "args": {"name": "host"}},
        {"ph": "M", "name": "thread_sort_index", "pid": 1, "tid": 2000, "args": {"sort_index": 2000}},
        {"ph": "M", "name": "thread_name", "pid": 1, "tid": 3000, "args": {"name": "transfers"}},
        {"ph": "M", "name": "thread_sort_index", "pid": 1, "tid": 3000, "args": {"sort_index": 3000}},
        {"ph": "M", "name": "thread_name", "pid": 1, "tid": 3001, "args": {"name": "transfers 2"}},
        {"ph": "M", "name": "thread_sort_index", "pid": 1, "tid": 3001, "args": {"sort_index": 3001}},
        {"ph": "M", "name": "thread_name", "pid": 1, "tid": 4000, "args": {"name": "waits"}},
        {"ph": "M", "name": "thread_sort_index", "pid": 1, "tid": 4000, "args": {"sort_index": 4000}},
        {"ph": "M", "name": "thread_name", "pid": 1, "tid": 5000, "args": {"name": "python"}},
        {"ph": "M", "name": "thread_sort_index", "pid": 1, "tid": 5000, "args": {"sort_index": 5000}},
        # An X event lies at 1,500 ns - 1,000 ns = 0.5 us and takes 2,250 ns = 2.25 us.
        {"ph": "X", "name": "head", "cat": "device", "pid": 1, "tid": 1000, "ts": 0.5, "dur": 2.25, "args": {"n": 3}},
        {"ph": "X", "name": "to host", "cat": "transfers", "pid": 1, "tid": 3000, "ts": 0.0, "dur": 2.0, "args": {}},
        {"ph": "X", "name": "evict", "cat": "transfers", "pid": 1, "tid": 3001, "ts": 1.0, "dur": 2.0, "args": {}},
        {
            "ph": "X",
            "name": "iteration",
            "cat": "python",
            "pid": 1,
            "tid": 5000,
            "ts": 0.25,
            "dur": 0.001,
            "args": {"iteration": 1, "strategy": "layer_sync"},
        },
    ],
}  # fmt: skip
TRACE = Trace(
    spans=(
        span(1500, 3750, "device", "head", n=3),
        span(1000, 3000, "transfers", "to host"),
        span(2000, 4000, "transfers", "evict"),
        span(1250, 1251, "python", "iteration", iteration=1, strategy="layer_sync"),
    ),
    label="emulated",
    versions={"apex_jax": "9.9"},
    dropped=4,
)


class TestFile:
    def test_is_what_was_worked_out_by_hand(self, tmp_path):
        save(TRACE, tmp_path / "out.json")
        assert json.loads((tmp_path / "out.json").read_text(encoding="utf-8")) == BY_HAND

    def test_by_hand_is_read(self, tmp_path):
        (tmp_path / "out.json").write_text(json.dumps(BY_HAND), encoding="utf-8")
        assert load(tmp_path / "out.json") == TRACE

    def test_round_trip_to_the_nanosecond(self, tmp_path):
        recorder = Recorder(label="simulated")
        start = 123_456_789_012_345_678
        for number in range(1, 2000):
            begin = start + 7_919_993 * number
            recorder.span(TRACKS[number % 5], "Wörter", begin, begin + number, layer=number, text="é", none=None, x=0.1)
        recorder.save(tmp_path / "out.json")
        read, kept = load(tmp_path / "out.json"), recorder.trace()
        assert sorted(read.spans, key=lambda s: s.begin_ns) == list(kept.spans)
        assert (read.label, read.versions) == ("simulated", kept.versions)

    def test_nothing_recorded(self, tmp_path):
        Recorder().save(tmp_path / "out.json")
        assert load(tmp_path / "out.json").spans == ()

    def test_a_failed_save_leaves_what_was_there(self, tmp_path):
        path = tmp_path / "out.json"
        path.write_text("before", encoding="utf-8")
        recorder = Recorder()
        recorder.span("host", "attention", 0, 1, rows=object())  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="event 'attention' has args that are not all JSON"):
            recorder.save(path)
        assert [p.name for p in tmp_path.iterdir()] == ["out.json"]
        assert path.read_text(encoding="utf-8") == "before"
        with pytest.raises(FileNotFoundError):
            Recorder().save(tmp_path / "missing" / "out.json")


def damaged(change):
    content = json.loads(json.dumps(BY_HAND))
    change(content)
    return json.dumps(content)


class TestBadFiles:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (b"\x1f\x8b\x08\x00\xff", "is not a text file"),
            (b"", "is not JSON"),
            (b"hello", "is not JSON"),
            (b"[]", "was not written by apex-jax"),
            (b'{"traceEvents": []}', "was not written by apex-jax"),
            (b'{"traceEvents": [], "otherData": {"version": "1.0"}}', "has the format None"),
            (
                b'{"traceEvents": [], "otherData": {"format": "apex_jax trace 99"}}',
                "has the format 'apex_jax trace 99'",
            ),
        ],
    )
    def test_foreign(self, tmp_path, text, message):
        path = tmp_path / "out.json"
        path.write_bytes(text)
        with pytest.raises(TraceError, match=message) as error:
            load(path)
        assert str(path) in str(error.value)
        assert "apex-jax generate --trace" in str(error.value)

    def test_truncated_anywhere(self, tmp_path):
        path = tmp_path / "out.json"
        save(TRACE, path)
        whole = path.read_bytes()
        for length in range(len('{"displayTimeUnit"'), len(whole) - 2, 37):
            path.write_bytes(whole[:length])
            with pytest.raises(TraceError, match=r"is truncated: it ends in line \d+ without"):
                load(path)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda c: c.pop("traceEvents"), "the file has a `traceEvents` of None, not a list"),
            (lambda c: c["otherData"].pop("origin_ns"), "otherData has a `origin_ns` of None, not an integer"),
            (lambda c: c["traceEvents"].append(7), "event 17 is 7, not an object"),
            (lambda c: c["traceEvents"][13].update(ts="x"), "event 13 has a `ts` of 'x', not a number"),
            (lambda c: c["traceEvents"][13].update(dur=-1), "event 13 has a `dur` of -1; it cannot be negative"),
            (lambda c: c["traceEvents"][13].update(cat="gpu"), "event 13 has the track 'gpu'; the tracks are device"),
            (lambda c: c["traceEvents"][13].update(ph="B"), "event 13 has `ph` 'B'"),
            (lambda c: c["traceEvents"][13].update(args=[]), r"event 13 has a `args` of \[\], not an object"),
            (lambda c: c["traceEvents"][16].pop("name"), "event 16 has a `name` of None, not a string"),
        ],
    )
    def test_damaged(self, tmp_path, change, message):
        path = tmp_path / "out.json"
        path.write_text(damaged(change), encoding="utf-8")
        with pytest.raises(TraceError, match=f"is damaged: {message}"):
            load(path)

    def test_missing(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            load(tmp_path / "out.json")
