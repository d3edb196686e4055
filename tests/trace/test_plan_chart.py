"""A plan's text and picture: places worked out by hand, and what the artists of a figure say."""

from collections import Counter
from dataclasses import replace

import pytest
from matplotlib.patches import Rectangle

from apex_jax.scheduler.plan import Cohort, DecodeRow, Eviction, Fetch, Landing, Plan, PrefillChunk
from apex_jax.tracing.plan_chart import draw_plan
from apex_jax.tracing.plan_layout import MARGIN, PASSES_SHARE, describe, host_jobs, passes
from apex_jax.tracing.steady_plans import steady_plan


def row(request):
    return DecodeRow(request_id=request, slot=request, length=9, step=0)


def plan(*cohorts, layers=3, device=1, strategy="async_overlap", **rest):
    """Return a plan with cohorts (first, last) of one row each."""
    riding = tuple(
        Cohort(id=10 + i, rows=(row(100 + i), None), first=first, last=last) for i, (first, last) in enumerate(cohorts)
    )
    return Plan(
        number=4,
        strategy=strategy,
        num_layers=layers,
        decode=tuple(map(row, range(device))),
        cohorts=riding,
        **rest,
    )


class TestLayout:
    def test_a_parked_cohort(self):
        """Boundaries 0 to 3; the cohort rides 2 in the device rows' pass, before and after it is with the host."""
        found = passes(plan((2, 2)))
        assert [(p.boundary, p.begin, p.device, p.cohort and p.cohort.id, p.waits) for p in found] == [
            (0, 0, True, None, False),
            (1, 1, True, None, False),
            (2, 2, True, 10, True),
            (3, 3, True, None, False),
        ]
        assert [p.end - p.boundary for p in found] == [pytest.approx(PASSES_SHARE)] * 4
        jobs = [(job.layer, job.begin, job.end, job.reach) for job in host_jobs(plan((2, 2)))]
        assert jobs == [
            (1, -MARGIN, 2, "before"),
            (2, pytest.approx(2 + PASSES_SHARE), pytest.approx(3 + PASSES_SHARE + MARGIN), "after"),
        ]

    def test_two_cohorts_ride_through(self):
        """The second one's passes stand behind the first one's, and its host work goes on under those."""
        found = passes(plan((0, 3), (0, 3)))
        half = PASSES_SHARE / 2
        places = [pytest.approx(b + k * half) for b in range(4) for k in range(2)]
        assert [p.begin for p in found] == places
        assert [p.device for p in found] == [True, False] * 4
        assert [p.waits for p in found] == [False] * 2 + [True] * 6
        second = [job for job in host_jobs(plan((0, 3), (0, 3))) if job.cohort.id == 11]
        assert [(job.layer, job.reach) for job in second] == [(0, "within"), (1, "within"), (2, "within")]
        assert (second[0].begin, second[0].end) == (pytest.approx(2 * half), pytest.approx(1 + half))

    def test_without_device_rows_only_boundaries_with_cohorts_are_passed(self):
        found = passes(plan((2, 2), (0, 0), device=0))
        assert [(p.boundary, p.device, p.cohort.id, p.waits) for p in found] == [
            (0, False, 11, False),
            (2, False, 10, True),
        ]


class TestText:
    def test_async_overlap(self):
        assert describe(plan((2, 2), (0, 0), (3, 3), device=2, strategy="async_overlap")).splitlines() == [
            "async_overlap, plan 4: 3 layers, 4 passes",
            "device rows: 2 rows ride 0 to 3",
            "cohort 10: 1 row board at 2 with layer 1, begun an iteration ago, for which the device waits if it is "
            "late, are parked after 2 while the host computes layer 2",
            "cohort 11: 1 row board at 0 with their last tokens, are parked after 0 while the host computes layer 0",
            "cohort 12: 1 row board at 3 with layer 2, begun an iteration ago, for which the device waits if it is "
            "late, get tokens there",
        ]

    def test_pipelining_without_device_rows(self):
        assert describe(plan((0, 3), (0, 3), device=0, strategy="asymmetric_pipelining")).splitlines()[:3] == [
            "asymmetric_pipelining, plan 4: 3 layers, 8 passes, 4 of them over weights that were read just before",
            "device rows: none",
            "cohort 10: 1 row board at 0 with their last tokens, ride to 3, where they get tokens; the device waits "
            "for the host at 1 to 3",
        ]

    def test_prompts_and_moves(self):
        chunk = PrefillChunk(request_id=7, slot=7, start=0, tokens=(1, 2, 3), samples=False, step=0)
        moving = plan(
            prefill=(chunk,),
            landings=(Landing(request_id=1, slot=1, device_pages=(0,)),),
            evictions=tuple(Eviction(request_id=i, slot=i, device_pages=(0,), host_pages=(0,)) for i in (2, 3)),
            fetches=(Fetch(request_id=5, host_pages=(0,)),),
        )
        assert describe(moving).splitlines()[1:] == [
            "device rows: 1 row and 3 prompt tokens ride 0 to 3",
            "requests that land on the device first: 1",
            "requests that leave for the host first: 2, 3",
            "requests that begin to return beside it: 5",
        ]
        notes = [text.get_text() for text in draw_plan(moving).texts]
        assert "requests that leave for the host first: 2, 3" in notes[1]


def boxes(figure):
    (ax,) = figure.axes
    return Counter(patch.get_gid() for patch in ax.patches if isinstance(patch, Rectangle))


def marks(figure):
    (ax,) = figure.axes
    return Counter(line.get_gid() for line in ax.lines if line.get_gid())


class TestChart:
    """16 layers have 17 boundaries and 16 attentions."""

    @pytest.mark.parametrize(
        ("strategy", "host_rows", "expected", "marked"),
        [
            ("device_only", 0, {"pass": 17, "attention": 16}, {}),
            # A box for the device rows and one for the cohort in each pass; a wait in both lanes but at boundary 0.
            (
                "layer_sync",
                24,
                {"pass": 34, "shared": 17, "attention": 16, "host": 16},
                {"wait": 32, "boards": 1, "leaves": 1},
            ),
            (
                "asymmetric_pipelining",
                24,
                {"pass": 51, "shared": 17, "attention": 16, "host": 32},
                {"wait": 48, "boards": 2, "leaves": 2},
            ),
            (
                "async_overlap",
                24,
                {"pass": 19, "shared": 2, "attention": 16, "host": 4},
                {"wait": 4, "boards": 2, "leaves": 2},
            ),
        ],
    )
    def test_boxes_and_marks(self, strategy, host_rows, expected, marked):
        figure = draw_plan(steady_plan(strategy, num_layers=16, device_rows=8, host_rows=host_rows))
        assert boxes(figure) == expected
        assert marks(figure) == marked

    def test_lanes_are_named(self):
        (ax,) = draw_plan(plan((2, 2), (0, 0), device=2)).axes
        labels = [label.get_text() for label in ax.get_yticklabels()]
        assert labels == ["device rows\n2 rows", "cohort 10\n1 row", "cohort 11\n1 row"]
        assert [label.get_text() for label in ax.get_xticklabels()] == ["0", "1", "2", "3"]

    def test_the_end_of_a_ride_is_marked(self):
        (ax,) = draw_plan(plan((2, 2), (3, 3))).axes
        ends = [line.get_marker() for line in ax.lines if line.get_gid() == "leaves"]
        assert ends == ["s", "*"]

    def test_the_legend_has_only_what_is_there(self):
        def entries(shown):
            return {text.get_text() for text in draw_plan(shown).axes[0].get_legend().get_texts()}

        assert entries(plan()) == {"pass over a boundary's weights", "attention on the device"}
        alone = entries(plan((0, 3), device=0))
        assert {"cohort in a pass of its own", "gets its token"} <= alone
        assert not {"cohort in the device rows' pass", "is parked", "attention on the device"} & alone

    def test_many_boundaries_have_fewer_ticks(self):
        (ax,) = draw_plan(steady_plan("device_only", num_layers=80, device_rows=1)).axes
        assert len(ax.get_xticks()) == 27


class TestCommand:
    def test_says_and_draws(self, command, tmp_path):
        picture = tmp_path / "plan.png"
        arguments = [
            "--strategy",
            "async_overlap",
            "--layers",
            16,
            "--device-rows",
            8,
            "--host-rows",
            24,
            "--number",
            2,
        ]
        status, out, err = command("plan", *arguments, "-o", picture)
        assert (status, err) == (0, "")
        expected = steady_plan("async_overlap", num_layers=16, device_rows=8, host_rows=24, number=2)
        assert out == f"{describe(expected)}\n{expected}\nwrote {picture}\n"
        assert picture.read_bytes().startswith(b"\x89PNG")

    def test_says_without_matplotlib(self, command, monkeypatch, tmp_path):
        monkeypatch.setattr("apex_jax.cli.charts.find_spec", lambda name: None)
        assert command("plan", "--strategy", "device_only")[0] == 0
        status, out, err = command("plan", "--strategy", "device_only", "-o", tmp_path / "plan.png")
        assert (status, out) == (2, "")
        assert "pip install 'apex-jax[plot]'" in err

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--strategy", "auto"], "invalid choice: 'auto'"),
            (["--strategy", "layer_sync", "--layers", "0"], "num_layers is 0"),
            (["--strategy", "device_only", "--host-rows", "3"], "host_rows is 3; device_only has no place"),
            (
                ["--strategy", "device_only", "-o", "no/such/plan.png"],
                "there is no folder 'no/such' to write 'plan.png' into",
            ),
            (["--strategy", "device_only", "-o", "plan.jpg"], "'plan.jpg' ends neither in .png, .svg nor in .pdf"),
        ],
    )
    def test_mistakes(self, command, arguments, message):
        status, out, err = command("plan", *arguments)
        assert (status, out) == (2, "")
        assert message in err
        assert err.count("\n") == 1


def test_rows_that_have_ended_do_not_count():
    ended = plan((2, 2))
    ended = replace(ended, cohorts=(replace(ended.cohorts[0], rows=(None, None)),))
    assert "cohort 10: 0 rows board at 2" in describe(ended)
