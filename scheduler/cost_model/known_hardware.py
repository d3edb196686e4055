"""The accelerators, hosts and models that ship with the project.

Every number has its source beside it. "assumed" marks what no measurement or data sheet at hand gives: such a number is
a guess for planning, to be replaced by a measured profile.
"""

from __future__ import annotations

from typing import Any

from .hardware import DeviceSpec, HostSpec, ModelShape

_SWEEP = "derived from a published sweep of a pipelined hybrid engine on this card"
_SHEET = "data sheet"
_A10G = "derived from a published profile of this card"
_FRACTION = "assumed: 72 % of the data sheet's peak, the fraction seen on T4 and A10G"
_CORNER = (
    "assumed: A10G's published linear times exceed the longer of reading and computing by a quarter of the shorter"
)
_LINK = "assumed: two PCIe latencies and two small copies"
_AVX512 = "assumed: measured on 2 cores of a Zen 4 machine with this project's kernel"
_AWS = "AWS's instance page"

_STEPS = (
    (32, 37.3), (64, 39.1), (96, 40.7), (128, 41.2), (160, 54.5), (192, 63.0), (224, 72.8), (256, 73.3),
    (288, 102.9), (384, 106.6), (512, 134.6), (640, 173.5), (1024, 261.4),
)  # fmt: skip


def _device(name: str, **values: Any) -> DeviceSpec:
    """Read `attribute=(value, source)`."""
    numbers = {key: value for key, (value, _) in values.items()}
    return DeviceSpec(name=name, **numbers, sources={key: source for key, (_, source) in values.items()})


def _host(name: str, **values: Any) -> HostSpec:
    values = {"job_us": (12.0, _AVX512), "row_us": (0.0, "assumed: covered by the rate"), **values}
    numbers = {key: value for key, (value, _) in values.items()}
    return HostSpec(name=name, **numbers, sources={key: source for key, (_, source) in values.items()})


DEVICES = (
    _device(
        "t4",
        memory_gb=(16.0, _SHEET),
        weights_gb_per_s=(232.0, _SWEEP),
        attention_gb_per_s=(232.0, "assumed: the rate at which it reads weights"),
        tflops=(20.0, f"{_SWEEP}: 17 to 21 are seen, overheads included; its peak is 65"),
        overlap=(0.75, _CORNER),
        link_gb_per_s=(12.9, "measured copy rate of PCIe 3.0 x16"),
        link_us=(40.0, _LINK),
    ),
    _device(
        "a10",
        memory_gb=(24.0, _SHEET),
        weights_gb_per_s=(431.0, "assumed: as A10G, whose memory is the same"),
        attention_gb_per_s=(438.0, "assumed: as A10G, whose memory is the same"),
        tflops=(75.0, "assumed: 60 % of the data sheet's 125, which its 150 W cannot hold"),
        overlap=(0.75, _CORNER),
        link_gb_per_s=(20.0, "middle of 16 to 24 seen on PCIe 4.0 x16"),
        link_us=(30.0, _LINK),
    ),
    _device(
        "a10g",
        memory_gb=(24.0, _SHEET),
        weights_gb_per_s=(431.0, _A10G),
        attention_gb_per_s=(438.0, _A10G),
        tflops=(60.0, _A10G),
        overlap=(1.0, "the published curve counts"),
        link_gb_per_s=(20.0, "middle of 16 to 24 seen on PCIe 4.0 x16"),
        link_us=(30.0, _LINK),
        linear_ms=(_STEPS, f"{_A10G}, Llama-3.1-8B"),
        linear_weights_gb=(15.01, "layers and head of Llama-3.1-8B in half precision, by its sizes"),
    ),
    _device(
        "l4",
        memory_gb=(24.0, _SHEET),
        weights_gb_per_s=(216.0, _FRACTION),
        attention_gb_per_s=(216.0, _FRACTION),
        tflops=(55.0, "assumed: 45 % of the data sheet's 121, which its 72 W cannot hold"),
        overlap=(0.75, _CORNER),
        link_gb_per_s=(12.0, "assumed: PCIe 4.0 x8"),
        link_us=(30.0, _LINK),
    ),
    _device(
        "rtx-4090",
        memory_gb=(24.0, _SHEET),
        weights_gb_per_s=(726.0, _FRACTION),
        attention_gb_per_s=(726.0, _FRACTION),
        tflops=(140.0, "assumed: 85 % of the data sheet's 165 with float32 sums, the fraction seen on A10G"),
        overlap=(0.75, _CORNER),
        link_gb_per_s=(22.0, "assumed: as seen on PCIe 4.0 x16"),
        link_us=(30.0, _LINK),
    ),
    _device(
        "h100",
        memory_gb=(80.0, _SHEET),
        weights_gb_per_s=(2400.0, _FRACTION),
        attention_gb_per_s=(2400.0, _FRACTION),
        tflops=(600.0, "assumed: 75 % of 798 bfloat16 TFLOP/s seen in large products"),
        overlap=(0.75, _CORNER),
        link_gb_per_s=(55.0, "copy rate seen on PCIe 5.0 x16"),
        link_us=(25.0, _LINK),
    ),
)

HOSTS = (
    _host(
        "g4dn.4xlarge",
        cores=(8, f"{_AWS}: 16 threads of Xeon 8259CL"),
        memory_gb=(68.7, f"{_AWS}: 64 GiB"),
        attention_gb_per_s=(
            46.0,
            "derived from a published sweep on this host: 44 to 46, idle times of the host included",
        ),
    ),
    _host(
        "g5.4xlarge",
        cores=(8, f"{_AWS}: 16 threads of EPYC 7R32"),
        memory_gb=(68.7, f"{_AWS}: 64 GiB"),
        attention_gb_per_s=(29.5, "derived from a published profile on EPYC 7R32: 28 to 31"),
    ),
    _host(
        "g5.8xlarge",
        cores=(16, f"{_AWS}: 32 threads of EPYC 7R32"),
        memory_gb=(137.4, f"{_AWS}: 128 GiB"),
        attention_gb_per_s=(59.0, "assumed: twice g5.4xlarge, whose share of the socket is half as large"),
    ),
    _host(
        "g5.16xlarge",
        cores=(32, f"{_AWS}: 64 threads of EPYC 7R32"),
        memory_gb=(274.9, f"{_AWS}: 256 GiB"),
        attention_gb_per_s=(118.0, "assumed: four times g5.4xlarge, whose share of the socket is a quarter as large"),
    ),
    _host(
        "g6.4xlarge",
        cores=(8, f"{_AWS}: 16 threads of EPYC 7R13"),
        memory_gb=(68.7, f"{_AWS}: 64 GiB"),
        attention_gb_per_s=(32.0, "assumed: about g5.4xlarge, a share of a socket with the same memory"),
    ),
    _host(
        "2x-xeon-gold-6130",
        cores=(32, _SHEET),
        memory_gb=(200.0, "assumed; the paper does not say"),
        attention_gb_per_s=(120.0, "assumed: 47 % of the data sheet's 2 x 128 of DDR4-2666; the paper does not say"),
    ),
    _host(
        "2x-xeon-gold-6342",
        cores=(48, _SHEET),
        memory_gb=(200.0, "assumed; the paper does not say"),
        attention_gb_per_s=(190.0, "assumed: 47 % of the data sheet's 2 x 205 of DDR4-3200; the paper does not say"),
    ),
    _host(
        "2x-xeon-8480",
        cores=(112, _SHEET),
        memory_gb=(512.0, "assumed: a usual fitting"),
        attention_gb_per_s=(290.0, "assumed: 47 % of the data sheet's 2 x 307 of DDR5-4800"),
    ),
    _host(
        "desktop-ddr5",
        cores=(16, "assumed: a usual desktop"),
        memory_gb=(64.0, "assumed: a usual desktop"),
        attention_gb_per_s=(50.0, "assumed: 60 % of 83 of two channels of DDR5-5200"),
    ),
)

USUAL_HOST = {
    "t4": "g4dn.4xlarge",
    "a10": "2x-xeon-gold-6342",
    "a10g": "g5.4xlarge",
    "l4": "g6.4xlarge",
    "rtx-4090": "desktop-ddr5",
    "h100": "2x-xeon-8480",
}
"""The host beside each device where none is named: the cloud instance of that card, else the paper's or a usual one."""


def _llama_2(name: str, d: int, f: int, layers: int, heads: int) -> ModelShape:
    return _model(name, d, f, layers, heads, heads, 128, 32_000, tied=False)


def _model(name: str, d: int, f: int, layers: int, n: int, k: int, h: int, vocab: int, *, tied: bool) -> ModelShape:
    return ModelShape(
        name=name,
        num_layers=layers,
        hidden_size=d,
        num_heads=n,
        num_kv_heads=k,
        head_dim=h,
        intermediate_size=f,
        vocab_size=vocab,
        tied=tied,
    )


MODELS = (
    _llama_2("llama-2-7b", 4096, 11_008, 32, 32),
    _llama_2("llama-2-13b", 5120, 13_824, 40, 40),
    _model("llama-3.1-8b", 4096, 14_336, 32, 32, 8, 128, 128_256, tied=False),
    _model("llama-3.1-70b", 8192, 28_672, 80, 64, 8, 128, 128_256, tied=False),
    _model("llama-3.2-1b", 2048, 8192, 16, 32, 8, 64, 128_256, tied=True),
    _model("llama-3.2-3b", 3072, 8192, 28, 24, 8, 128, 128_256, tied=True),
    _model("tinyllama-1.1b", 2048, 5632, 22, 32, 4, 64, 32_000, tied=False),
    _model("smollm2-135m", 576, 1536, 30, 9, 3, 64, 49_152, tied=True),
    _model("smollm2-360m", 960, 2560, 32, 15, 5, 64, 49_152, tied=True),
    _model("smollm2-1.7b", 2048, 8192, 24, 32, 32, 64, 49_152, tied=True),
)
