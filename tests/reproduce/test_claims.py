"""Claims: the paper's numbers, verdicts worked out by hand, gains and closed forms."""

import csv
from dataclasses import replace

import pytest

from apex_jax.reproduce.claims import ALL, CLAIMS, Claim, compare
from apex_jax.reproduce.gains import OVER, Gain, gains_of
from apex_jax.reproduce.runs import Task
from apex_jax.reproduce.setups import NOMINAL, PAPERS_RATIOS, setups, workloads
from apex_jax.reproduce.steady import steady_at, steady_gains
from apex_jax.reproduce.tables import claim_lines, comparisons, write_claims
from apex_jax.scheduler.simulation.workload import equal

RANGE = Claim(name="a", text="a", low=10, high=20, machine="T4", over="device_only", groups=("long",))
UP_TO = replace(RANGE, low=None, high=40)


def test_claims_are_the_papers(anchors):
    published = [
        (row["gpu"], float(row["low"]) if row["low"] else None, float(row["high"]))
        for row in csv.DictReader((anchors / "paper_claims.csv").read_text().splitlines())
    ]
    assert [(claim.machine or "either", claim.low, claim.high) for claim in CLAIMS] == published


def made(nominal, others=()):
    """Gains of the nominal set-up and of another one, a workload each."""
    return [
        Gain(machine="T4", setup=setup, workload=f"w{index}", over="device_only", percent=percent)
        for setup, percents in ((NOMINAL, nominal), ("slow host", others))
        for index, percent in enumerate(percents)
    ]


@pytest.mark.parametrize(
    ("claim", "nominal", "others", "inside", "verdict"),
    [
        (RANGE, [10, 20], [], 2, "reproduced"),
        (RANGE, [9.5, 20.5], [0, 50], 2, "reproduced"),
        (RANGE, [5, 15], [], 1, "partly"),
        (RANGE, [30], [15], 1, "partly"),
        (RANGE, [30], [25, 40], 0, "not reproduced"),
        (RANGE, [5], [0], 0, "not reproduced"),
        # The range lies between what was simulated, but nothing that was simulated lies in it.
        (RANGE, [30], [0], 0, "not reproduced"),
        (UP_TO, [0, 34], [], 1, "reproduced"),
        (UP_TO, [0, 46], [0, 60], 1, "reproduced"),
        (UP_TO, [0, 60], [35], 1, "partly"),
        # Nothing lies in the range, on either side of it.
        (UP_TO, [0, 33], [], 0, "not reproduced"),
        (UP_TO, [0, 60], [], 0, "not reproduced"),
        (UP_TO, [0, 5], [30, 60], 0, "not reproduced"),
        (UP_TO, [0, 5], [40], 1, "partly"),
        (UP_TO, [0, 5], [19], 0, "not reproduced"),
    ],
)
def test_verdicts(claim, nominal, others, inside, verdict):
    found = compare(claim, made(nominal, others))
    assert found.verdict == verdict
    assert len(found.inside) == inside
    assert found.nominal == (min(nominal), max(nominal))
    assert found.band == (min([*nominal, *others]), max([*nominal, *others]))


def test_the_papers_own_ratios():
    """170 us beside 3,031 us is 5.6 %: 13.0 of a T4's 232 GB/s and 24.6 of an A10's 438; 10 % is 23.2 and 43.8."""
    rates = {
        (setup.machine, setup.label): setup.engine.host.attention_gb_per_s
        for setup in setups()
        if setup.label in PAPERS_RATIOS
    }
    assert list(rates.values()) == pytest.approx([13.01, 23.2, 24.57, 43.8], rel=1e-3)
    assert all(setup.engine.device_kv_tokens is None for setup in setups() if setup.label in PAPERS_RATIOS)
    example, typical = PAPERS_RATIOS
    papers = [replace(made([percent])[0], setup=label) for percent, label in ((12, example), (25, typical))]
    found = compare(RANGE, [*made([30], [-5]), *papers])
    assert (found.nominal, found.at_papers_ratio, found.band) == ((30, 30), (12, 25), (-5, 30))
    assert found.verdict == "partly"
    assert found.inside == (papers[0],)
    assert compare(RANGE, made([30])).at_papers_ratio is None


def test_no_gains_to_compare():
    with pytest.raises(ValueError, match="there are no gains in the nominal set-up to hold against 'a'"):
        compare(RANGE, made([], [1]))


def test_what_lies_in_the_range_is_counted_and_named(tmp_path):
    """50 is within 15 % of "up to 49": the second workload of the nominal set-up, and none of the other."""
    (claim,) = (claim for claim in CLAIMS if claim.name == "T4 over pipelining, long")
    gains = [replace(gain, workload="long", over="pipelining") for gain in made([3, 50], [10, 60, 70])]
    (found,) = comparisons(gains)
    assert found.claim is claim
    write_claims(tmp_path / "claims.csv", [found])
    (row,) = csv.DictReader((tmp_path / "claims.csv").read_text().splitlines())
    assert (float(row["range_low_percent"]), float(row["range_high_percent"])) == (41.65, 56.35)
    assert (row["nominal_in_range"], row["nominal_simulated"]) == ("1", "2")
    assert (row["all_in_range"], row["all_simulated"]) == ("1", "5")
    assert row["in_range"] == "long on T4, nominal: 50.0"
    lines = list(claim_lines([found]))
    assert " 3..50 " in lines[2]
    assert " 1/5  reproduced" in lines[2]
    assert len([line for line in lines if line.startswith("not simulated")]) == len(CLAIMS) - 1


def test_every_claim_has_its_gain_and_workloads():
    groups = {workload.group for workload in workloads("T4", 1, {})}
    assert groups == set(ALL)
    for claim in CLAIMS:
        assert claim.over in OVER
        assert set(claim.groups) <= groups | {"steady"}


def test_recorded_lengths_replace_drawn_ones():
    jobs = equal(prompt=5, output=6, requests=3)
    found = {workload.group: workload for workload in workloads("A10", 2, {"azure-code": jobs})}
    assert found["code"].jobs == tuple(jobs)
    assert "recorded" in found["code"].text
    assert "drawn" in found["conversation"].text


def test_gains_are_ratios_of_tokens_per_s():
    nominal = setups()[0]
    assert nominal.label == NOMINAL
    jobs = tuple(equal(prompt=100, output=30, requests=30))
    runs = [
        Task(setup=nominal, workload="long", variant=name, jobs=jobs).run()
        for name in ("device_only", "pipelining", "apex")
    ]
    found = {gain.over: gain.percent for gain in gains_of(runs)}
    rates = [run.result.tokens_per_s for run in runs]
    assert found.keys() == {"device_only", "pipelining"}
    assert found["device_only"] == pytest.approx(100 * (rates[2] / rates[0] - 1))
    assert found["pipelining"] == pytest.approx(100 * (rates[2] / rates[1] - 1))
    (first, *_) = comparisons(gains_of(runs))
    assert first.claim.name == "T4 over GPU-only"
    assert first.nominal == first.band == (pytest.approx(found["device_only"]),) * 2


def test_decoding_for_ever_on_a_t4():
    """4,800 tokens are 9 rows, in 57 ms and 11 ms for their attention. A host of 45 GB/s makes 45e9 / (500 * 524,288)
    = 172 tokens/s beside them; its rows lengthen the passes and its jobs have overheads, so it is a little less."""
    setup = next(setup for setup in setups() if setup.engine.device_kv_tokens == 4800)
    rates = steady_at(setup).rates
    attention = 9 * 500 * 524_288 / 232e9
    assert rates["device_only"] == pytest.approx(9 / (0.057 + attention + 0.25 * 9 * 0.00066), rel=0.01)
    host = 45e9 / (500 * 524_288)
    assert 0.85 * host < rates["async_overlap"] - rates["device_only"] < host
    by_hand = 100 * (rates["async_overlap"] / rates["asymmetric_pipelining"] - 1)
    found = {gain.over: gain.percent for gain in steady_gains([setup]) if gain.setup == setup.label}
    assert found["overlap"] == pytest.approx(by_hand)


def test_no_machine_counts_twice_in_steady_decoding():
    """Each has 2 amounts of KV at 11 host bandwidths, 4 of these 22 in a set-up of their own: on the T4 120, 45, 20 and
    45 GB/s, on the A10 190, 60, 30 and 60 GB/s. The paper's own two ratios are none of the 11."""
    overlap = [gain for gain in steady_gains(setups()) if gain.over == "overlap"]
    for machine in ("T4", "A10"):
        assert len({gain.setup for gain in overlap if gain.machine == machine}) == 24
    assert len(overlap) == 48
