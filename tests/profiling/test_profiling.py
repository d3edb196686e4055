"""Profiling a machine whose profile is known must find that profile."""

import random
from dataclasses import replace

import pytest

from apex_jax.execution.batch import padding_of
from apex_jax.profiling.profiler import Profiler
from apex_jax.scheduler import AttentionTime, CostModel, Curve, Load, Profile, ProfileKey, prompt_pairs
from apex_jax.scheduler.strategies.steady import steady

from .virtual_machine import VirtualMachine

KEY = ProfileKey(device="d", host="h", model="m", dtypes="t", software="s")


def known(machine=None, **changes):
    """A machine with steps, none of whose parts is negligible. In steady iterations hop and host attention together
    outlast the device's own attention, so that layer_sync shows them."""
    values = {
        "key": KEY,
        "described": False,
        "num_layers": 6,
        "page_size": 16,
        "kv_bytes_per_token": 100,
        "layer": Curve(points=((1, 1e-3), (8, 1.2e-3), (16, 2e-3), (64, 4e-3), (72, 4.5e-3), (1000, 50e-3))),
        "head": Curve.line(1e-4, start=2e-3),
        "pre_share": 0.2,
        "device_attention": AttentionTime(rows=Curve.constant(0.0), tokens=Curve.line(3e-6)),
        "prefill_attention": Curve.line(2e-7),
        "host_attention": AttentionTime(rows=Curve.line(1e-5, start=2e-4), tokens=Curve.line(1e-6)),
        "hop": Curve.line(1e-6, start=3e-4),
        "boarding": Curve.constant(5e-5),
        "migration": Curve.line(1e-5),
        "iteration_overhead": 0.0,
        "stepwise_overhead": 1e-3,
    }
    profile = Profile(**{**values, **changes})
    return replace(profile, padding=padding_of(VirtualMachine(profile).buckets))


def measured(machine):
    points = []
    profiler = Profiler(
        machine,
        KEY,
        kv_bytes_per_token=100,
        pre_share=0.2,
        on_point=lambda: points.append(1),
        clock=machine.clock,
    )
    profile = profiler.measure()
    assert len(points) == profiler.sizes.count
    assert len(points) <= 60
    return profile


def random_situation(rng):
    strategy = rng.choice(("device_only", "device_only", "layer_sync", "asymmetric_pipelining", "async_overlap"))
    rows, prompt = rng.randint(1, 8), rng.choice((0, 0, 16, 48, 64))
    load = Load(
        device_rows=rows,
        device_kv_tokens=rows * rng.randint(1, 128),
        prefill_tokens=prompt,
        prefill_pairs=prompt_pairs(prompt, 16 * rng.randint(0, 12)) if prompt else 0,
        prompt_samples=1 if prompt else 0,
    )
    count = rng.randint(2, 16)
    lanes = {
        "device_only": (),
        "layer_sync": (count,),
        "asymmetric_pipelining": (count // 2, count - count // 2),
        "async_overlap": (count // 2, count - count // 2),
    }
    return strategy, load, lanes[strategy], rng.randint(16, 48)


def test_the_profile_is_found():
    truth = known()
    found = measured(VirtualMachine(truth))
    assert found.padding == truth.padding
    assert found.num_layers == 6
    for rows in (1, 2, 4, 8, 16, 32, 64):
        assert found.layer(rows) == pytest.approx(truth.layer(rows), rel=1e-6)
    for rows in (1, 4, 8):
        assert found.head(rows) == pytest.approx(truth.head(rows))
    assert found.device_attention(8, 1000) == pytest.approx(truth.device_attention(8, 1000), rel=1e-6)
    assert found.prefill_attention(5000) == pytest.approx(truth.prefill_attention(5000), rel=1e-6)
    assert found.host_attention(16, 700) == pytest.approx(truth.host_attention(16, 700), rel=1e-6)
    assert found.hop(16) == pytest.approx(truth.hop(16), rel=0.1)
    assert found.boarding(4) == pytest.approx(truth.boarding(4), rel=0.3)
    assert found.stepwise_overhead == pytest.approx(truth.stepwise_overhead, rel=0.1)
    assert found.migration(64) == pytest.approx(truth.migration(64))


@pytest.mark.parametrize("tiles", [4, 8, 11, 16])
def test_prompt_attention_is_found_even_if_a_chunk_fills_the_context(tiles):
    """Contexts have 16 pages of 16 tokens."""
    truth = known()
    found = measured(VirtualMachine(truth, tiles=tiles))
    most = prompt_pairs(16 * tiles, 256 - 16 * tiles)
    assert found.prefill_attention.covers(most)
    for pairs in (2000, most / 2, most):
        assert found.prefill_attention(pairs) == pytest.approx(truth.prefill_attention(pairs), rel=1e-6)


def test_all_that_an_engine_can_hold_is_covered():
    """8 device rows and 256 on the host; contexts of 16 pages of 16 tokens."""
    machine = VirtualMachine(known(), max_host_seqs=256, host_pages=2048)
    found = measured(machine)
    assert found.head(264) == pytest.approx(known().head(264))
    assert found.head.covers(264)
    assert found.hop.covers(256)
    assert found.host_attention.covers(256, 2048 * 16)
    assert found.host_attention(256, 2048 * 16) == pytest.approx(known().host_attention(256, 2048 * 16), rel=1e-6)
    assert found.migration.covers(256)
    assert found.migration(256) == pytest.approx(known().migration(256))


def test_iterations_of_all_strategies_are_predicted():
    truth = known()
    right, ours, rng = CostModel(truth), CostModel(measured(VirtualMachine(truth))), random.Random(1)
    for _ in range(200):
        situation = random_situation(rng)
        expected, got = steady(right.costs, *situation), steady(ours.costs, *situation)
        assert got.host_busy_s == pytest.approx(expected.host_busy_s, rel=0.01)
        # The widest batch that is measured has all prompt tokens and device rows, but no cohort beside them.
        assert not got.extrapolated or (situation[1].prefill_tokens and situation[2])
        if not got.extrapolated:
            assert got.iteration_s == pytest.approx(expected.iteration_s, rel=0.03), situation


def test_a_device_that_never_waits_hides_the_hop():
    """Where the device's attention outlasts handing over, none of it shows; the profile says so and stays usable."""
    truth = known(device_attention=AttentionTime(rows=Curve.constant(0.0), tokens=Curve.line(3e-4)))
    found = measured(VirtualMachine(truth))
    assert found.hop(4) <= truth.hop(4) + truth.device_attention(8, 128) / 6
    assert found.device_attention(8, 1000) == pytest.approx(truth.device_attention(8, 1000), rel=1e-6)


@pytest.mark.parametrize(
    "sizes",
    [
        {"pages": 2, "host_pages": 1, "max_num_seqs": 1, "max_host_seqs": 1},
        {"pages": 4, "host_pages": 3, "max_num_seqs": 2, "max_host_seqs": 2},
        {"pages": 5, "host_pages": 400, "max_num_seqs": 16, "max_host_seqs": 64},
        {"pages": 400, "host_pages": 5, "max_num_seqs": 64, "max_host_seqs": 256},
        {"pages": 4000, "host_pages": 4000, "max_num_seqs": 512, "max_host_seqs": 2048, "tiles": 16},
    ],
)
def test_small_and_large_engines(sizes):
    measured(VirtualMachine(known(), **sizes))


def test_without_a_host_tier():
    machine = VirtualMachine(known())
    machine.worker = None
    with pytest.raises(ValueError, match="give host_kv_bytes"):
        Profiler(machine, KEY, kv_bytes_per_token=1, pre_share=0.1)
