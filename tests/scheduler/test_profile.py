"""Curves and profiles against times worked out by hand, and files that must be refused."""

import dataclasses
import json
import math
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apex_jax.scheduler import (
    AttentionTime,
    Curve,
    DeviceSpec,
    HostSpec,
    ModelShape,
    Padding,
    Profile,
    ProfileError,
    ProfileKey,
    describe,
    load_profile,
    save_profile,
)

KEY = ProfileKey(device="card", host="cores", model="L2", dtypes="float32", software="1.0")


def line(slope, start=0.0, to=1000):
    return Curve(points=((0, start), (to, start + slope * to)))


def profile(**changes):
    values = {
        "key": KEY,
        "described": False,
        "num_layers": 2,
        "page_size": 16,
        "kv_bytes_per_token": 64,
        "layer": Curve(points=((1, 1e-3), (128, 2e-3), (129, 3e-3))),
        "head": line(1e-6, 1e-4),
        "pre_share": 0.25,
        "device_attention": AttentionTime(rows=line(0), tokens=line(1e-6)),
        "prefill_attention": line(1e-9),
        "host_attention": AttentionTime(rows=line(0, 1e-5), tokens=line(1e-6)),
        "hop": line(0, 2e-5),
        "boarding": line(0),
        "migration": line(1e-6),
        "iteration_overhead": 1e-4,
    }
    return Profile(**{**values, **changes})


class TestCurve:
    def test_between_points(self):
        curve = Curve(points=((10, 1.0), (20, 3.0), (40, 3.0)))
        assert [curve(10), curve(15), curve(20), curve(30), curve(40)] == [1.0, 2.0, 3.0, 3.0, 3.0]

    def test_outside_it_says_so(self):
        curve = Curve(points=((10, 1.0), (20, 3.0)))
        assert (curve(5), curve.covers(5)) == (1.0, False)
        assert (curve(30), curve.covers(30)) == (5.0, False)
        assert curve.covers(10)
        assert curve.covers(20)

    def test_noise_between_the_last_two_points_is_not_continued(self):
        """From 256, half of 512, to 528 it rises by 34 in 272, whatever the last two say."""
        curve = Curve(points=((64, 1.0), (256, 10.0), (512, 20.0), (528, 44.0)))
        assert curve(520) == pytest.approx(32.0)
        assert curve(528 + 272) == pytest.approx(44.0 + 34.0)

    def test_one_point(self):
        curve = Curve(points=((1, 2.0),))
        assert curve(1) == curve(100) == 2.0
        assert not curve.covers(100)

    def test_a_step(self):
        curve = Curve(points=((1, 1.0), (128, 1.0), (129, 2.0)))
        assert (curve(128), curve(129)) == (1.0, 2.0)

    def test_lines_cover_everything(self):
        curve = Curve.line(3e-9, start=1e-5)
        assert curve.covers(0)
        assert curve.covers(10**9)
        assert curve(10**9) == pytest.approx(3.00001, rel=1e-12)
        assert Curve.constant(0.5)(10**6) == 0.5

    @pytest.mark.parametrize(
        ("points", "match"),
        [
            ((), "no points"),
            (((1, -1.0),), "time is -1"),
            (((-1, 1.0),), "count is -1"),
            (((1, math.nan),), "time is nan"),
            (((1, math.inf),), "time is inf"),
            (((1, "2"),), "time is '2'"),
            (((1, True),), "time is True"),
            (((1, 1.0), (1, 2.0)), "must rise, but 1 follows 1"),
            (((1, 2.0), (2, 1.0)), "must not fall, but 1 s at 2 follow 2 s at 1"),
        ],
    )
    def test_refused(self, points, match):
        with pytest.raises(ValueError, match=match):
            Curve(points=points)

    def test_fit_pools_what_falls(self):
        """Samples of one count are averaged; 3, 1 at counts 2 and 3 become 2, 2."""
        curve = Curve.fit([(1, 0.5), (1, 1.5), (3, 1.0), (2, 3.0), (4, 5.0)])
        assert curve.points == ((1, 1.0), (2, 2.0), (3, 2.0), (4, 5.0))

    @given(st.lists(st.tuples(st.integers(0, 20), st.floats(0, 10)), min_size=1, max_size=30))
    def test_fit_keeps_the_mean_and_rises(self, samples):
        curve = Curve.fit(samples)
        grouped = {}
        for count, seconds in samples:
            grouped.setdefault(count, []).append(seconds)
        means = [sum(values) / len(values) for values in grouped.values()]
        assert sum(seconds for _, seconds in curve.points) == pytest.approx(sum(means), abs=1e-9)
        seconds = [seconds for _, seconds in curve.points]
        assert seconds == sorted(seconds)


class TestProfile:
    def test_linear(self):
        assert profile().linear(128) == pytest.approx(2 * 2e-3 + 1e-4 + 128e-6)
        assert profile().linear(129, sampled=1) == pytest.approx(2 * 3e-3 + 1e-4 + 1e-6)

    @pytest.mark.parametrize(
        ("change", "match"),
        [
            ({"num_layers": 0}, "num_layers is 0"),
            ({"page_size": 1.5}, "page_size is 1.5"),
            ({"kv_bytes_per_token": True}, "kv_bytes_per_token is True"),
            ({"pre_share": 1.5}, "pre_share is 1.5"),
            ({"pre_share": math.nan}, "pre_share is nan"),
            ({"iteration_overhead": -1.0}, "iteration_overhead is -1"),
            ({"described": 1}, "described is 1"),
            ({"layer": line(0)}, "layer takes 0 s"),
        ],
    )
    def test_refused(self, change, match):
        with pytest.raises(ValueError, match=match):
            profile(**change)

    def test_padding(self):
        assert [Padding.fit((1, 4, 16), count) for count in (0, 1, 2, 4, 16, 17)] == [0, 1, 4, 4, 16, 17]
        with pytest.raises(ValueError, match="padding rows is \\[4, 4\\]"):
            Padding(rows=(4, 4))
        with pytest.raises(ValueError, match="padding host_rows is \\[-1\\]"):
            Padding(host_rows=(-1,))

    def test_an_empty_name_is_no_key(self):
        with pytest.raises(ValueError, match="device of a profile's key is ''"):
            dataclasses.replace(KEY, device="")


class TestFile:
    def test_round_trip(self, tmp_path):
        original = profile(padding=Padding(rows=(1, 2, 4), mixed_rows=(0, 4)))
        path = tmp_path / "cache" / "profile.json"
        save_profile(original, path)
        assert load_profile(path, KEY) == original
        assert [file.name for file in path.parent.iterdir()] == ["profile.json"]
        assert '  "layer": [[1, 0.001], [128, 0.002], [129, 0.003]],\n' in path.read_text(encoding="utf-8")

    def test_threads_that_save_one(self, tmp_path):
        """1,800 times, while others read: no write fails, and no read is of a part."""
        path, done = tmp_path / "p.json", threading.Event()
        saved = [profile(num_layers=layers) for layers in range(1, 7)]
        save_profile(saved[0], path)

        def read():
            count = 0
            while not done.is_set():
                assert load_profile(path, KEY) in saved
                count += 1
            return count

        with ThreadPoolExecutor(8) as pool:
            readers = [pool.submit(read) for _ in range(2)]
            try:
                for written in [pool.submit(save_profile, saved[number % 6], path) for number in range(1800)]:
                    written.result()
            finally:
                done.set()
            assert all(reader.result() for reader in readers)
        assert [file.name for file in tmp_path.iterdir()] == ["p.json"]

    @pytest.mark.parametrize("part", ["device", "host", "model", "dtypes", "software"])
    def test_of_something_else(self, tmp_path, part):
        save_profile(profile(), tmp_path / "p.json")
        with pytest.raises(ProfileError, match=f"something else: {part} is '.*', needed is 'other'"):
            load_profile(tmp_path / "p.json", dataclasses.replace(KEY, **{part: "other"}))

    @pytest.mark.parametrize("kept", [0, 1, 100, -3])
    def test_truncated(self, tmp_path, kept):
        save_profile(profile(), tmp_path / "whole.json")
        text = (tmp_path / "whole.json").read_text(encoding="utf-8")
        (tmp_path / "p.json").write_text(text[:kept], encoding="utf-8")
        with pytest.raises(ProfileError, match=r"p\.json: this is not whole JSON"):
            load_profile(tmp_path / "p.json")

    def test_not_text(self, tmp_path):
        (tmp_path / "p.json").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(ProfileError, match=r"p\.json: this is not text in UTF-8"):
            load_profile(tmp_path / "p.json")

    def test_a_byte_order_mark_is_no_harm(self, tmp_path):
        save_profile(profile(), tmp_path / "p.json")
        marked = "\ufeff" + (tmp_path / "p.json").read_text(encoding="utf-8")
        (tmp_path / "p.json").write_text(marked, encoding="utf-8")
        assert load_profile(tmp_path / "p.json") == profile()

    def test_a_name_twice(self, tmp_path):
        save_profile(profile(), tmp_path / "p.json")
        text = (tmp_path / "p.json").read_text(encoding="utf-8")
        twice = text.replace('"page_size": 16', '"page_size": 16, "page_size": 64')
        (tmp_path / "p.json").write_text(twice, encoding="utf-8")
        with pytest.raises(ProfileError, match=r"p\.json: page_size is there twice"):
            load_profile(tmp_path / "p.json")

    def test_missing(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            load_profile(tmp_path / "p.json")

    @pytest.mark.parametrize(
        ("path", "value", "match"),
        [
            (("format",), "something", "format is 'something'"),
            (("layer",), [[1, -1.0]], "layer: a curve's time is -1"),
            (("layer",), [[1, math.nan]], "layer: a curve's time is nan"),
            (("layer",), [[1, math.inf]], "layer: a curve's time is inf"),
            (("layer",), [[1, 1.0], [2, 1e300]], r"layer: a curve's time is 1e\+300; numbers from 0 to 1e\+18 are"),
            (("layer",), [[1, 1.0], [1e300, 2.0]], "layer: a curve's count is 1e\\+300"),
            (("layer",), [[1, "1"]], "layer: a curve's time is '1'"),
            (("layer",), [[1]], "layer must be a list of"),
            (("layer",), {"1": 1}, "layer must be a list of"),
            (("hop",), [], "hop: a curve has no points"),
            (("migration",), [[1, 2.0], [2, 1.0]], "migration: a curve's times must not fall"),
            (("host_attention", "rows"), [[0, -1]], "host_attention.rows: a curve's time is -1"),
            (("host_attention",), [], "host_attention must have the parts"),
            (("host_attention",), {"rows": []}, "host_attention lacks \\['tokens'\\]"),
            (("num_layers",), "2", "num_layers is '2'"),
            (("num_layers",), None, "num_layers is None"),
            (("pre_share",), [], "pre_share is \\[\\]"),
            (("pre_share",), 7, "pre_share is 7"),
            (("described",), "no", "described is 'no'"),
            (("key",), "T4", "key must have the parts"),
            (("key", "device"), 3, "device of a profile's key is 3"),
            (("padding", "rows"), 3, "padding.rows must be a list"),
            (("padding", "rows"), ["a"], "padding rows is \\['a'\\]"),
            (("extra",), 1, "a profile has unknown \\['extra'\\]$"),
        ],
    )
    def test_edited_to_nonsense(self, tmp_path, path, value, match):
        save_profile(profile(), tmp_path / "p.json")
        values = json.loads((tmp_path / "p.json").read_text(encoding="utf-8"))
        target = values
        for name in path[:-1]:
            target = target[name]
        target[path[-1]] = value
        (tmp_path / "p.json").write_text(json.dumps(values), encoding="utf-8")
        with pytest.raises(ProfileError, match=match):
            load_profile(tmp_path / "p.json")

    @pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Profile)])
    def test_a_part_is_missing(self, tmp_path, name):
        save_profile(profile(), tmp_path / "p.json")
        values = json.loads((tmp_path / "p.json").read_text(encoding="utf-8"))
        del values[name]
        (tmp_path / "p.json").write_text(json.dumps(values), encoding="utf-8")
        with pytest.raises(ProfileError, match=f"lacks \\['{name}'\\]"):
            load_profile(tmp_path / "p.json")

    @pytest.mark.parametrize("text", ["[]", "3", "null", "{}"])
    def test_other_json(self, tmp_path, text):
        (tmp_path / "p.json").write_text(text, encoding="utf-8")
        with pytest.raises(ProfileError, match="format is"):
            load_profile(tmp_path / "p.json")


class TestDescribed:
    MODEL = ModelShape(
        name="small",
        num_layers=2,
        hidden_size=8,
        num_heads=2,
        num_kv_heads=1,
        head_dim=4,
        intermediate_size=16,
        vocab_size=100,
    )
    DEVICE = DeviceSpec(
        name="card", memory_gb=1, weights_gb_per_s=1e-3, attention_gb_per_s=2e-3, tflops=1e-5, link_gb_per_s=1e-4
    )
    HOST = HostSpec(name="cores", cores=1, memory_gb=1, attention_gb_per_s=1e-3, job_us=1000, row_us=100)

    def test_times_by_hand(self):
        """Pre-attention has 8*(2+2)*4 = 128 weights, a layer 128 + 64 + 384 = 576 or 1,152 bytes, read in 1.152 ms;
        a row computes 1,152 operations in 0.1152 ms, so that reading and computing meet at 10 rows. A token's KV takes
        2*2*1*4*2 = 32 bytes."""
        got = describe(device=self.DEVICE, host=self.HOST, model=self.MODEL)
        assert got.described
        assert got.kv_bytes_per_token == 32
        assert [got.layer(rows) for rows in (1, 10, 20)] == pytest.approx([1.152e-3, 1.152e-3, 2.304e-3])
        assert got.head(1) == pytest.approx(1.6e-3)
        assert got.pre_share == pytest.approx(128 / 576)
        assert got.device_attention(3, 1000) == pytest.approx(32e3 / 2e6)
        assert got.host_attention(3, 1000) == pytest.approx(1e-3 + 3e-4 + 16e3 / 1e6)
        assert got.prefill_attention(100) == pytest.approx(4 * 2 * 2 * 4 * 100 / 1e7)
        assert got.migration(10) == pytest.approx(320 / 1e5)
        # Queries, keys and values out (2 + 2 heads) and the result back (2 heads), 4 numbers of 2 bytes each.
        assert got.hop(5) == pytest.approx(5 * 6 * 4 * 2 / 1e5)

    def test_without_overlap_reading_and_computing_add_up(self):
        device = dataclasses.replace(self.DEVICE, overlap=0.0, layer_us=1000)
        got = describe(device=device, host=self.HOST, model=self.MODEL)
        assert [got.layer(rows) for rows in (1, 10, 20)] == pytest.approx(
            [1e-3 + 1.152e-3 + 0.1152e-3, 1e-3 + 2.304e-3, 1e-3 + 3.456e-3]
        )

    def test_survives_a_file(self, tmp_path):
        original = describe(device=self.DEVICE, host=self.HOST, model=self.MODEL)
        save_profile(original, tmp_path / "p.json")
        assert load_profile(tmp_path / "p.json", original.key) == original

    @pytest.mark.parametrize(
        ("change", "match"),
        [
            ({"tflops": 0}, "device 'card': tflops is 0"),
            ({"attention_gb_per_s": -1.0}, "device 'card': attention_gb_per_s is -1"),
            ({"weights_gb_per_s": math.nan}, "device 'card': weights_gb_per_s is nan"),
            ({"overlap": 2.0}, "device 'card': overlap is 2"),
            ({"link_us": "x"}, "device 'card': link_us is 'x'"),
        ],
    )
    def test_device_refused(self, change, match):
        with pytest.raises(ValueError, match=match):
            dataclasses.replace(self.DEVICE, **change)

    def test_host_and_model_refused(self):
        with pytest.raises(ValueError, match="host 'h': attention_gb_per_s is inf"):
            HostSpec(name="h", cores=1, memory_gb=1, attention_gb_per_s=math.inf)
        with pytest.raises(ValueError, match="num_kv_heads of small is 0"):
            dataclasses.replace(self.MODEL, num_kv_heads=0)
        with pytest.raises(ValueError, match=r"num_heads of small is 8; a multiple of its num_kv_heads, 3, is needed"):
            dataclasses.replace(self.MODEL, num_heads=8, num_kv_heads=3)
