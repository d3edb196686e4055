"""The paper's machines and workloads, as far as they are known, and bands for what is not.

Known are the cards, the hosts' processors, the models and the names of the workloads. Not known are the hosts' memory
bandwidth in attention, lengths, and how much KV the engines held on the device: beside the catalogue's values stand
others, down to slow hosts and up to all the KV that fits, and two that the paper itself gives as ratios.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ..scheduler.cost_model.catalogue import Catalogue
from ..scheduler.experiment import Experiment
from ..scheduler.simulation.workload import PUBLISHED, Job, Moments, at_once, fitting


@dataclass(frozen=True, kw_only=True)
class Setup:
    """A machine with one choice of what is not known.

    Attributes:
        machine: the card, as the paper names it.
        label: which choice.
        engine: without a strategy.
    """

    machine: str
    label: str
    engine: Experiment


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Requests of one kind.

    Attributes:
        group: short name, see `claims.ALL`.
        name: of a published trace, "" for chosen lengths.
        text: for people.
        jobs: all at once; those that fit on the device are served.
    """

    group: str
    name: str
    text: str
    jobs: tuple[Job, ...]


NOMINAL = "nominal"

VARIED = {
    "T4": ((45.0, None), (20.0, None), (45.0, 4800)),
    "A10": ((60.0, None), (30.0, None), (60.0, 20_000)),
}
"""Beside the nominal choice: the host's GB/s in attention, and tokens of KV on the device if not what fits.

8 cores of a cloud instance reach 30 to 46 GB/s, a kernel without vector instructions less. 4,800 tokens are all that a
T4 holds beside the weights; 20,000 are half of what fits an A10.
"""

PAPERS_RATIOS = {"host as in the paper's example": 170 / 3031, "host at the paper's 10 %": 0.10}
"""The host's rate in attention over the device's, by set-up, with as much KV on the device as fits.

The paper's example is attention of 3,031 us on the CPU beside 170 us on the GPU; it says that the ratio is "typically
under 10 %". Both were written down before anything was simulated with them.
"""

SPREAD = 0.25
"""Deviation of lengths over their mean where nothing is published."""


def setups() -> list[Setup]:
    """Return both machines in the nominal choice, with each unknown varied, and at the paper's own ratios."""
    known = Catalogue.built_in()
    nominal = {
        "T4": ("t4", "2x-xeon-gold-6130", "llama-2-7b"),
        "A10": ("a10", "2x-xeon-gold-6342", "llama-3.1-8b"),
    }
    found = []
    for machine, (device, host, model) in nominal.items():
        engine = Experiment(device=known.device(device), host=known.host(host), model=known.model(model))
        found.append(Setup(machine=machine, label=NOMINAL, engine=engine))
        found += [Setup(machine=machine, label=label, engine=other) for label, other in _varied(machine, engine)]
        for label, ratio in PAPERS_RATIOS.items():
            slow = replace(engine.host, attention_gb_per_s=ratio * engine.device.attention_gb_per_s)
            found.append(Setup(machine=machine, label=label, engine=replace(engine, host=slow)))
    return found


def workloads(machine: str, requests: int, traces: Mapping[str, Sequence[Job]], *, seed: int = 0) -> list[Workload]:
    """Return the workloads of a machine.

    Args:
        machine: "T4" or "A10"; a T4 holds about a thousand tokens, so its prompts are shorter.
        requests: of each.
        traces: recorded requests by published name, in place of drawn ones.
        seed: of drawn lengths.
    """
    prompt = {"T4": 200, "A10": 1000}[machine]
    longest = {"T4": 600, "A10": 1000}[machine]
    named = {"code": "azure-code", "conversation": "azure-conversation", "summarisation": "summarisation"}
    found = []
    for group, name in named.items():
        recorded = traces.get(name)
        jobs = at_once(recorded)[: 4 * requests] if recorded else PUBLISHED[name].draw(4 * requests, seed=seed)
        text = f"{name}, {'recorded' if recorded else 'drawn from its moments'}"
        found.append(Workload(group=group, name=name, text=text, jobs=tuple(jobs)))
    for group, output in (("short", 100), ("medium", 300), ("long", longest)):
        moments = Moments(prompt=(prompt, SPREAD * prompt), output=(output, SPREAD * output), source="chosen")
        jobs = moments.draw(4 * requests, seed=seed)
        found.append(Workload(group=group, name="", text=f"{prompt} + {output} tokens on average", jobs=tuple(jobs)))
    return found


def served(workload: Workload, engine: Experiment, requests: int) -> list[Job]:
    """Return the first requests of a workload that fit on the device."""
    return fitting(workload.jobs, tokens=engine.longest)[:requests]


def _varied(machine: str, engine: Experiment) -> Iterator[tuple[str, Experiment]]:
    for rate, tokens in VARIED[machine]:
        other = replace(engine, host=replace(engine.host, attention_gb_per_s=rate), device_kv_tokens=tokens)
        yield f"host {rate:g} GB/s" + (f", device KV {tokens:,}" if tokens else ""), other
