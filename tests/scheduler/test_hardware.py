"""The catalogue: every number has a source, models are the presets, files add to it, profiles follow from it."""

import csv
import json
from dataclasses import fields

import pytest

from apex_jax.execution.model_shape import shape_of
from apex_jax.models.presets import PRESETS
from apex_jax.scheduler.cost_model.catalogue import Catalogue
from apex_jax.scheduler.cost_model.hardware import DeviceSpec, HostSpec, device_kv_tokens
from apex_jax.scheduler.cost_model.roofline import describe

KNOWN = Catalogue.built_in()
OWN = {
    "name": "mine",
    "memory_gb": 10,
    "weights_gb_per_s": 100,
    "attention_gb_per_s": 50,
    "tflops": 10,
    "link_gb_per_s": 8,
}
SMALL = {
    "name": "small",
    "num_layers": 2,
    "hidden_size": 64,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 16,
    "intermediate_size": 128,
    "vocab_size": 1000,
}
BOX = {"name": "box", "cores": 4, "memory_gb": 32, "attention_gb_per_s": 20}


@pytest.mark.parametrize("spec", [*KNOWN.devices.values(), *KNOWN.hosts.values()], ids=lambda spec: spec.name)
def test_every_number_has_a_source(spec):
    used = [f.name for f in fields(spec) if f.name not in ("name", "sources") and getattr(spec, f.name)]
    assert set(used) <= set(spec.sources)
    assert all(spec.sources.values())


@pytest.mark.parametrize("name", PRESETS)
def test_models_are_the_presets(name):
    config, model = PRESETS[name], KNOWN.model(name)
    assert model == shape_of(config, "bfloat16", name=name)
    norms = (2 * config.num_hidden_layers + 1) * config.hidden_size
    assert model.weights_bytes == 2 * (config.num_parameters - norms)
    assert set(KNOWN.models) == set(PRESETS)


def test_sizes_of_llama_2_7b():
    model = KNOWN.model("llama-2-7b")
    assert model.kv_bytes_per_token == 524_288
    assert model.weights_bytes == pytest.approx(2 * 6.738e9, rel=1e-3)
    # 16 GB * 0.9 - 13.476 GB - 0.47 GB are 0.454 GB.
    assert device_kv_tokens(KNOWN.device("t4"), model, memory_fraction=0.9, workspace_gb=0.47) == 865


def test_rates_are_the_anchors(anchors):
    rows = {row["name"]: row for row in csv.DictReader((anchors / "hardware.csv").read_text().splitlines())}
    for name, key in (("t4", "T4"), ("a10g", "A10G")):
        device = KNOWN.device(name)
        assert device.memory_gb == float(rows[key]["memory_gb"])
        assert device.weights_gb_per_s == float(rows[key]["weights_gb_per_s_seen"])
        low, _, high = rows[key]["gemm_tflops_seen"].partition("-")
        assert float(low) <= device.tflops <= float(high or low)
    for host, key in (("g4dn.4xlarge", "T4"), ("g5.4xlarge", "A10G")):
        low, high = map(float, rows[key]["host_attention_gb_per_s_seen"].split("-"))
        assert low <= KNOWN.host(host).attention_gb_per_s <= high


def test_linear_times_of_a10g_are_the_published_ones(anchors):
    profile = describe(KNOWN.device("a10g"), KNOWN.host("g5.4xlarge"), KNOWN.model("llama-3.1-8b"))
    for row in csv.DictReader((anchors / "a10g_linear.csv").read_text().splitlines()):
        assert profile.linear(int(row["tokens"])) * 1e3 == pytest.approx(float(row["forward_ms"]), rel=1e-3)
    assert not profile.layer.covers(1025)


def test_linear_times_scale_with_the_model():
    device, host = KNOWN.device("a10g"), KNOWN.host("g5.4xlarge")
    large, small = KNOWN.model("llama-3.1-8b"), KNOWN.model("llama-3.2-1b")
    ratio = describe(device, host, small).linear(64) / describe(device, host, large).linear(64)
    assert ratio == pytest.approx(small.linear_bytes / large.linear_bytes)


def test_described_linear_times_follow_the_rates():
    profile = describe(KNOWN.device("t4"), KNOWN.host("g4dn.4xlarge"), KNOWN.model("llama-2-7b"))
    reading, computing = 13.214e9 / 232e9, 2 * 6.607e9 / 20e12
    assert profile.linear(1) == pytest.approx(reading + 0.25 * computing, rel=1e-3)
    assert profile.linear(1000) == pytest.approx(1000 * computing + 0.25 * reading, rel=1e-3)


@pytest.mark.parametrize("name", ["T4", "t4", "RTX_4090", "rtx 4090"])
def test_names_are_found_however_they_are_written(name):
    assert KNOWN.device(name).name in ("t4", "rtx-4090")


def test_own_names_are_found_however_they_are_written(tmp_path):
    file = tmp_path / "own.json"
    file.write_text("\ufeff" + json.dumps({"devices": [{**OWN, "name": "My GPU"}, {**OWN, "name": "T4"}]}), "utf-8")
    catalogue = KNOWN.extended(file)
    for name in ("My GPU", "my gpu", "my-gpu", "MY_GPU"):
        assert catalogue.device(name).name == "My GPU"
    # The own T4 stands in place of the known one, not beside it.
    assert catalogue.device("t4").memory_gb == 10
    assert [name for name in catalogue.devices if name.lower() == "t4"] == ["T4"]


@pytest.mark.parametrize("kind", ["device", "host", "model"])
def test_unknown_names_list_what_is_known(kind):
    with pytest.raises(ValueError, match=f"unknown {kind} 'abacus'; known are .*, .*"):
        getattr(KNOWN, kind)("abacus")


def test_own_entries(tmp_path):
    content = {
        "devices": [{**OWN, "sources": {"tflops": "a guess"}}, {**OWN, "name": "t4"}],
        "hosts": [BOX],
        "models": [{**SMALL, "tied": True}],
    }
    file = tmp_path / "own.json"
    file.write_text(json.dumps(content))
    catalogue = KNOWN.extended(file)
    assert catalogue.device("mine").tflops == 10
    assert catalogue.device("t4").memory_gb == 10
    assert catalogue.host("box").cores == 4
    assert catalogue.model("small").weights_bytes == catalogue.model("small").linear_bytes
    assert catalogue.device("a10") == KNOWN.device("a10")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "holds a JSON list; an object is needed"),
        ('{"gpus": []}', "has the key 'gpus'; allowed are devices, hosts, models"),
        ('{"devices": {}}', "devices must be a list of objects"),
        ('{"devices": [{}]}', "an entry has the name None; text is needed"),
        ('{"devices": [{"name": "x", "speed": 1}]}', "'x' has the key 'speed'; allowed are name, memory_gb"),
        ('{"hosts": [{"name": "x", "cores": 1}]}', "'x' lacks the keys memory_gb, attention_gb_per_s"),
        ('{"models": [{"name": "x", "num_layers": 1}]}', "'x' lacks the keys hidden_size, num_heads, num_kv_heads, "),
        (json.dumps({"devices": [{k: v for k, v in OWN.items() if k != "tflops"}]}), "'mine' lacks the key tflops$"),
        (json.dumps({"devices": [OWN, OWN]}), "own.json: two entries have one name, 'mine' and 'mine'"),
        (json.dumps({"devices": [OWN, {**OWN, "name": "My GPU"}, {**OWN, "name": "my_gpu"}]}), "'My GPU' and 'my_gpu'"),
        (json.dumps({"devices": [{**OWN, "memory_gb": "12"}]}), "memory_gb is '12', which is text; a number is needed"),
        (json.dumps({"hosts": [{**BOX, "cores": 2.5}]}), "cores is 2.5; a whole number is needed"),
        (json.dumps({"hosts": [{**BOX, "sources": {"cores": 3}}]}), "sources is {'cores': 3}; an object of texts"),
        (json.dumps({"hosts": [{**BOX, "sources": {"cores": ""}}]}), "sources is {'cores': ''}; an object of texts"),
        (json.dumps({"devices": [{**OWN, "tflops": 0}]}), "tflops is 0; it must be above 0"),
        (json.dumps({"devices": [{**OWN, "tflops": "fast"}]}), "tflops is 'fast', which is text"),
        (json.dumps({"devices": [{**OWN, "overlap": 2}]}), "overlap is 2; it must lie between 0 and 1"),
        (json.dumps({"devices": [{**OWN, "tflops": None}]}), "tflops is None; finite numbers above 0"),
        (json.dumps({"devices": [{**OWN, "tflops": -1}]}), "tflops is -1; finite numbers above 0"),
        (json.dumps({"devices": [{**OWN, "sources": {"colour": "red"}}]}), "sources names 'colour'"),
        (json.dumps({"devices": [{**OWN, "linear_ms": [[1, 2]]}]}), "must be given together"),
        (json.dumps({"devices": [{**OWN, "linear_ms": [1], "linear_weights_gb": 1}]}), "a list of .rows, millisec"),
        (
            json.dumps({"devices": [{**OWN, "linear_ms": [[2, 2], [1, 3]], "linear_weights_gb": 1}]}),
            "linear_ms is no curve: a curve's counts must rise",
        ),
        (json.dumps({"models": [{**SMALL, "tied": 1}]}), "'small': tied is 1; true or false is needed"),
        (
            json.dumps({"models": [{**SMALL, "size": 1}]}),
            "'small' has the key 'size'; allowed are name, .*kv_bytes, tied",
        ),
    ],
)
def test_unusable_files(tmp_path, content, message):
    file = tmp_path / "own.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=message):
        KNOWN.extended(file)


def test_no_room_for_kv():
    with pytest.raises(ValueError, match=r"llama-3.1-70b needs 141.1 GB for weights .* t4's 16 GB leave no room"):
        device_kv_tokens(KNOWN.device("t4"), KNOWN.model("llama-3.1-70b"), memory_fraction=0.9, workspace_gb=0.5)


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), True])
def test_impossible_rates(value):
    with pytest.raises(ValueError, match="host 'box': attention_gb_per_s is"):
        HostSpec(name="box", cores=1, memory_gb=1, attention_gb_per_s=value)


def test_a_device_needs_no_overheads():
    assert DeviceSpec(**OWN).layer_us == 0
