"""The set-ups of two published sweeps of a pipelined hybrid engine, for comparing simulations with them.

The T4 sweep: Llama-2-7B in float16 on a T4 with g4dn.4xlarge, 1,000 requests at once. Its GPU-only engine was held to
864 tokens of KV and computed prompts in iterations of their own. The A10G sweep: Llama-3.1-8B, relative to the same
engine without a host, on instances of 8, 16 and 32 cores.
"""

from __future__ import annotations

from ..scheduler.cost_model.catalogue import Catalogue
from ..scheduler.experiment import Experiment
from ..scheduler.simulation.workload import equal
from ..scheduler.strategies import ASYMMETRIC_PIPELINING, DEVICE_ONLY

T4 = ("t4", "g4dn.4xlarge", "llama-2-7b")
T4_KV_TOKENS = 864

A10G_HOSTS = {8: "g5.4xlarge", 16: "g5.8xlarge", 32: "g5.16xlarge"}
"""Instances by their cores."""


def t4_hybrid(*, prompt: int, output: int, requests: int = 1000) -> float:
    """Return requests a second of pipelining on the T4, with as much KV on the device as fits."""
    return _rate(_experiment(*T4, strategy=ASYMMETRIC_PIPELINING.name), prompt, output, requests)


def t4_gpu_only(*, prompt: int, output: int, requests: int = 1000) -> float:
    """Return requests a second of the GPU-only engine on the T4."""
    engine = _experiment(*T4, strategy=DEVICE_ONLY.name, device_kv_tokens=T4_KV_TOKENS, prefill_alone=True)
    return _rate(engine, prompt, output, requests)


def a10g_gain(*, cores: int, prompt: int, output: int, requests: int = 1000) -> float:
    """Return the throughput of pipelining on the A10G over that of the device alone.

    Raises:
        ValueError: no instance of the sweep has that many cores.
    """
    if cores not in A10G_HOSTS:
        raise ValueError(f"cores is {cores}; the sweep has instances of {', '.join(map(str, A10G_HOSTS))}")
    machine = ("a10g", A10G_HOSTS[cores], "llama-3.1-8b")
    hybrid = _experiment(*machine, strategy=ASYMMETRIC_PIPELINING.name)
    alone = _experiment(*machine, strategy=DEVICE_ONLY.name, prefill_alone=True)
    return _rate(hybrid, prompt, output, requests) / _rate(alone, prompt, output, requests)


def _experiment(device: str, host: str, model: str, **options) -> Experiment:
    known = Catalogue.built_in()
    return Experiment(device=known.device(device), host=known.host(host), model=known.model(model), **options)


def _rate(engine: Experiment, prompt: int, output: int, requests: int) -> float:
    return engine.run(equal(prompt=prompt, output=output, requests=requests)).requests_per_s
