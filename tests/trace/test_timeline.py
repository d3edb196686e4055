"""Which iterations a chart shows and what it says of them: worked out by hand, and read back from its artists."""

import json
from itertools import pairwise

import pytest
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_hex

from apex_jax.tracing.recorder import TRACKS, Recorder
from apex_jax.tracing.timeline import choose, find_iterations
from apex_jax.tracing.timeline_chart import COHORT_COLOURS, draw

from .synthetic_traces import ATTENTION, HOP, LAYER, synthetic


def recorded(*iterations, marks="device"):
    """Return a trace of (begin, end, busy device ns, busy host ns), numbered from 10."""
    recorder = Recorder()
    for number, (begin, end, device, host) in enumerate(iterations, start=10):
        recorder.span(marks, "iteration", begin, end, iteration=number, strategy="layer_sync")
        for track, busy in (("device", device), ("host", host)):
            if busy:
                recorder.span(track, "attention", begin, begin + busy)
    return recorder.trace()


class TestIterations:
    def test_spans_have_their_own_ends(self):
        found = find_iterations(recorded((100, 190, 5, 0), (200, 310, 5, 0)))
        assert [(i.number, i.strategy, i.begin_ns, i.end_ns) for i in found] == [
            (10, "layer_sync", 100, 190),
            (11, "layer_sync", 200, 310),
        ]

    def test_one_of_no_time_and_no_strategy(self):
        recorder = Recorder()
        recorder.span("python", "iteration", 250, 250, iteration=1)
        (found,) = find_iterations(recorder.trace())
        assert (found.number, found.strategy, found.begin_ns, found.end_ns) == (1, "", 250, 251)

    def test_those_of_the_device_count(self):
        recorder = Recorder()
        recorder.span("python", "iteration", 0, 10, iteration=4)
        recorder.span("device", "iteration", 50, 90, iteration=4)
        (found,) = find_iterations(recorder.trace())
        assert (found.begin_ns, found.end_ns) == (50, 90)

    def test_none(self):
        recorder = Recorder()
        recorder.span("device", "layer", 0, 10)
        with pytest.raises(ValueError, match="the trace marks no iterations: it has no event 'iteration'"):
            find_iterations(recorder.trace())


class TestChoice:
    def test_three_from_the_middle_in_which_both_work(self):
        trace = recorded(*((100 * i, 100 * i + 100, 50, 50 if 5 <= i < 10 else 0) for i in range(20)))
        assert [i.number for i in choose(trace).iterations] == [16, 17, 18]

    def test_a_host_job_that_began_before_counts(self):
        iterations = [(100 * i, 100 * i + 100, 50, 0) for i in range(20)]
        iterations[14] = (1400, 1500, 50, 290)
        assert [i.number for i in choose(recorded(*iterations)).iterations] == [24, 25, 26]

    def test_one_of_them_is_better_than_none(self):
        iterations = [(100 * i, 100 * i + 100, 50, 0) for i in range(20)]
        iterations[2] = (200, 300, 50, 50)
        assert [i.number for i in choose(recorded(*iterations)).iterations] == [11, 12, 13]

    def test_the_middle_where_the_host_does_nothing(self):
        trace = recorded(*((100 * i, 100 * i + 100, 50, 0) for i in range(9)))
        assert [i.number for i in choose(trace).iterations] == [13, 14, 15]

    def test_none_across_a_gap_in_the_recording(self):
        """The middle of these nine would be 14, 21 and 22."""
        recorder = Recorder()
        for number in (*range(11, 15), *range(21, 26)):
            recorder.span("device", "iteration", 100 * number, 100 * number + 100, iteration=number)
            for track in ("device", "host"):
                recorder.span(track, "attention", 100 * number, 100 * number + 50)
        assert [i.number for i in choose(recorder.trace()).iterations] == [21, 22, 23]
        with pytest.raises(ValueError, match=r"iterations 14:17 are not in the trace, which has 11:15, 21:26$"):
            choose(recorder.trace(), (14, 17))

    def test_fewer_than_three(self):
        assert [i.number for i in choose(recorded((0, 10, 5, 5))).iterations] == [10]

    def test_as_told(self):
        trace = recorded(*((100 * i, 100 * i + 100, 50, 0) for i in range(9)))
        window = choose(trace, (12, 14))
        assert [i.number for i in window.iterations] == [12, 13]
        assert (window.begin_ns, window.end_ns) == (200, 400)
        assert [span.begin_ns for span in window.spans] == [200, 300]

    @pytest.mark.parametrize("numbers", [(9, 11), (18, 20), (14, 14), (100, 101)])
    def test_not_there(self, numbers):
        trace = recorded(*((100 * i, 100 * i + 100, 50, 0) for i in range(9)))
        with pytest.raises(ValueError, match=rf"iterations {numbers[0]}:{numbers[1]} are not in .* which has 10:19"):
            choose(trace, numbers)


def test_busy_by_hand():
    """Overlapping spans count once, and only what lies in the window."""
    recorder = Recorder(label="emulated", max_events=6)
    recorder.span("device", "dropped", 0, 0)
    recorder.span("device", "iteration", 1_000_000, 2_000_000, iteration=3, strategy="async_overlap")
    recorder.span("host", "attention", 500_000, 1_200_000)  # 200 in the window
    recorder.span("host", "attention", 1_100_000, 1_300_000)  # 100 more
    recorder.span("host", "attention", 1_250_000, 1_260_000)  # within that
    recorder.span("host", "attention", 1_900_000, 2_500_000)  # 100 until the end
    recorder.span("device", "layer", 1_000_000, 1_750_000)
    window = choose(recorder.trace())
    assert window.busy("host") == pytest.approx(0.4)
    assert window.busy("device") == pytest.approx(0.75)
    assert window.busy("python") == 0
    assert window.summary() == (
        "iteration 3 of 3 to 3 (async_overlap) · 1.0 ms emulated · device busy 75% · host busy 40%"
        " · older events dropped: 1"
    )


def bars(ax):
    """Return {label: number of bars} of a lane."""
    counts = {}
    for artist in ax.collections:
        assert isinstance(artist, PolyCollection)
        counts[artist.get_label()] = counts.get(artist.get_label(), 0) + len(artist.get_paths())
    return counts


def texts(ax):
    return [text.get_text() for text in ax.texts]


class TestChart:
    def test_layer_sync_has_the_right_bars(self):
        """16 layers, one cohort, two iterations: 16 jobs each, and the device waits after each."""
        window = choose(synthetic("layer_sync", layers=16, host_rows=6).trace(), (3, 5))
        figure = draw(window)
        lanes = dict(zip(TRACKS, figure.axes, strict=True))
        assert [ax.get_ylabel() for ax in figure.axes] == list(TRACKS)
        assert bars(lanes["device"]) == {"layer": 32, "attention": 32, "head": 2, "strip": 34}
        assert bars(lanes["host"]) == {"cohort 3": 16, "cohort 4": 16}
        assert bars(lanes["transfers"]) == {"to host": 32, "to device": 32}
        assert bars(lanes["waits"])["device waits"] == 32
        assert bars(lanes["python"]) == {"plan": 2, "dispatch": 2, "update": 2}

        # An iteration: 17 passes, and between them the longer one of attention on either side.
        iteration = (17 * LAYER + 16 * max(ATTENTION, 2 * HOP + 6 * 20_000)) / 1e6
        assert lanes["device"].get_xlim() == pytest.approx((0, 2 * iteration))
        for ax in figure.axes:
            assert [line.get_xdata()[0] for line in ax.lines] == pytest.approx([0, iteration, 2 * iteration])
        assert texts(lanes["device"])[-2:] == [f"iteration {n} · layer_sync · {iteration:.1f} ms" for n in (3, 4)]
        assert f"busy {16 * 120_000 / 1e6 / iteration:.0%}" in texts(lanes["host"])
        assert f"busy {(17 * LAYER + 16 * ATTENTION) / 1e6 / iteration:.0%}" in texts(lanes["device"])

    def test_a_bar_lies_where_its_span_does(self):
        recorder = Recorder()
        recorder.span("device", "iteration", 5_000_000, 9_000_000, iteration=0)
        recorder.span("device", "layer", 6_000_000, 8_500_000, layer=3)
        lane = draw(choose(recorder.trace())).axes[0]
        (bar,) = lane.collections
        corners = bar.get_paths()[0].vertices
        assert (corners[:, 0].min(), corners[:, 0].max()) == (1.0, 3.5)
        assert "layer 3" in texts(lane)

    def test_a_bar_of_several_layers_names_first_and_last(self):
        recorder = Recorder()
        recorder.span("device", "iteration", 5_000_000, 9_000_000, iteration=0)
        recorder.span("device", "layer", 6_000_000, 8_500_000, layer=3, last_layer=6)
        recorder.span("device", "layer", 8_500_000, 9_000_000, layer=7, last_layer=7)
        assert {"layers 3-6", "layer 7"} <= set(texts(draw(choose(recorder.trace())).axes[0]))

    def test_a_cohort_keeps_its_colour(self):
        window = choose(synthetic("async_overlap", layers=16, host_rows=600, host_row=17_000).trace(), (4, 7))
        device, host = draw(window).axes[:2]
        jobs = {artist.get_label(): to_hex(artist.get_facecolor()[0]) for artist in host.collections}
        strips = [to_hex(artist.get_facecolor()[0]) for artist in device.collections if artist.get_label() == "strip"]
        assert jobs == {"cohort 3": COHORT_COLOURS[0], "cohort 4": COHORT_COLOURS[1]}
        assert strips == [COHORT_COLOURS[0], COHORT_COLOURS[1]]
        # One boards at 9, 10, 11, the other at 0, 1, 2.
        assert bars(device)["strip"] == 6
        assert bars(host) == {"cohort 3": 3, "cohort 4": 3}
        assert {f"layer {layer} · 300 rows" for layer in (0, 1, 2, 9, 10)} <= set(texts(host))

    def test_waits_are_hatched_and_nothing_else_is(self):
        window = choose(synthetic("asymmetric_pipelining", layers=4, host_rows=48, host_row=40_000).trace())
        for track, ax in zip(TRACKS, draw(window).axes, strict=True):
            assert ax.collections
            assert all(bool(artist.get_hatch()) == (track == "waits") for artist in ax.collections)

    def test_kinds_of_waits_are_side_by_side(self):
        """They overlap in time, so they must not in height."""
        waits = draw(choose(synthetic("layer_sync", layers=8, host_rows=6).trace())).axes[3]
        heights = []
        for artist in waits.collections:
            vertical = [y for path in artist.get_paths() for y in path.vertices[:, 1]]
            heights.append((min(vertical), max(vertical)))
        heights.sort()
        assert len(heights) == 3
        assert all(upper[1] < lower[0] for upper, lower in pairwise(heights))

    def test_legends_name_what_is_there_and_are_bounded(self):
        window = choose(synthetic("async_overlap", layers=32, host_rows=66, cohorts=33, iterations=6).trace(), (2, 4))
        device, host = draw(window).axes[:2]
        entries = [text.get_text() for text in host.get_legend().get_texts()]
        assert len(entries) == 7
        assert entries[-1] == f"and {len(bars(host)) - 6} more"
        assert [text.get_text() for text in device.get_legend().get_texts()] == [
            "layer: attention + linear",
            "attention",
            "head",
            "strip: cohort on board",
        ]

    def test_unknown_kinds_are_drawn(self):
        recorder = Recorder()
        recorder.span("device", "iteration", 0, 100, iteration=0)
        for track in TRACKS:
            recorder.span(track, "something new", 0, 50, cohort="x", layer=None)
        for ax in draw(choose(recorder.trace())).axes:
            assert bars(ax) == {"something new": 1}

    def test_many_iterations_have_shorter_labels(self):
        trace = synthetic("device_only", layers=4, iterations=40).trace()
        labels = [texts(draw(choose(trace, (0, count))).axes[0])[-1] for count in (3, 8, 40)]
        ms = (5 * LAYER + 4 * ATTENTION) / 1e6
        assert labels == [f"iteration 2 · device_only · {ms:.1f} ms", f"7 · {ms:.1f} ms\ndevice_only", "39"]


class TestCommand:
    @pytest.fixture
    def trace(self, tmp_path):
        path = tmp_path / "out.json"
        synthetic("layer_sync", layers=4, host_rows=6).save(path)
        return path

    @pytest.mark.parametrize(("suffix", "magic"), [(".png", b"\x89PNG"), (".svg", b"<?xml")])
    def test_writes_a_picture(self, command, trace, tmp_path, suffix, magic):
        picture = tmp_path / f"out{suffix}"
        status, out, err = command("timeline", trace, "-o", picture)
        assert (status, err) == (0, "")
        assert out.startswith("iterations 3 to 5 of 0 to 7 (layer_sync) · ")
        assert out.splitlines()[-1] == f"wrote {picture}"
        assert picture.read_bytes().startswith(magic)

    def test_iterations(self, command, trace, tmp_path):
        status, out, _ = command("timeline", trace, "-o", tmp_path / "out.svg", "--iterations", "6:7")
        assert status == 0
        assert out.startswith("iteration 6 of 0 to 7")

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["{trace}"], "required: -o/--output"),
            (["{trace}", "-o", "out.gif"], "'out.gif' ends neither in .png, .svg nor in .pdf"),
            (["{trace}", "-o", "out.png", "--iterations", "4"], "'4' is no range; 20:23 means"),
            (["{trace}", "-o", "out.png", "--iterations", "4:4"], "'4:4' is no range"),
            (["{trace}", "-o", "out.png", "--iterations", "7:9"], "iterations 7:9 are not in the trace, which has 0:8"),
            (["{trace}", "-o", "{folder}/missing/out.png"], "missing' to write 'out.png' into"),
            (["{folder}/missing.json", "-o", "out.png"], "missing.json: No such file or directory"),
            (["{folder}/foreign.json", "-o", "out.png"], "foreign.json was not written by apex-jax"),
        ],
    )
    def test_mistakes(self, command, trace, arguments, message):
        (trace.parent / "foreign.json").write_text(json.dumps({"traceEvents": []}), encoding="utf-8")
        places = {"trace": trace, "folder": trace.parent}
        status, _, err = command("timeline", *(argument.format(**places) for argument in arguments))
        assert status == 2
        assert message in err
        assert err.count("\n") == 1

    def test_without_matplotlib(self, command, trace, tmp_path, monkeypatch):
        monkeypatch.setattr("apex_jax.cli.charts.find_spec", lambda name: None)
        status, out, err = command("timeline", trace, "-o", tmp_path / "out.png")
        assert (status, out) == (2, "")
        assert "pip install 'apex-jax[plot]'" in err
