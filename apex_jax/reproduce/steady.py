"""Decoding that goes on for ever: closed-form rates with as many host requests as each strategy wants.

A finite batch hides what asynchronous overlap does: it needs L times as many host requests as pipelining to keep the
host busy. Here they and the host's memory are unbounded, and no prompts are computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ..scheduler.cost_model.prediction import Load
from ..scheduler.planner.candidates import Outlook, Valuation
from ..scheduler.strategies import ASYMMETRIC_PIPELINING, ASYNC_OVERLAP, DEVICE_ONLY, STRATEGIES, named
from ..scheduler.strategies.steady import steady
from .gains import Gain
from .setups import Setup

CONTEXT = 500
"""Tokens of each request; rates of both sides fall alike with it."""

HOST_GB_PER_S = (5.0, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0, 90.0, 120.0, 190.0, 290.0)


@dataclass(frozen=True, kw_only=True)
class Steady:
    """Rates of all strategies on one machine.

    Attributes:
        machine, setup: which.
        device_kv_tokens, host_gb_per_s: of the set-up.
        rates: tokens/s by strategy. Hybrid ones have at least one host request, whether or not that pays.
    """

    machine: str
    setup: str
    device_kv_tokens: int
    host_gb_per_s: float
    rates: dict[str, float]

    def row(self) -> dict[str, object]:
        """Return the columns of a table."""
        alone, pipelining = self.rates[DEVICE_ONLY.name], self.rates[ASYMMETRIC_PIPELINING.name]
        ratios = {f"{name}_over_device_only": round(self.rates[name] / alone, 4) for name in STRATEGIES[1:]}
        return {
            "machine": self.machine,
            "device_kv_tokens": self.device_kv_tokens,
            "context": CONTEXT,
            "host_attention_gb_per_s": self.host_gb_per_s,
            "device_only_tokens_per_s": round(alone, 3),
            **ratios,
            "overlap_over_pipelining": round(self.rates[ASYNC_OVERLAP.name] / pipelining, 4),
        }


def steady_at(setup: Setup, host_gb_per_s: float | None = None) -> Steady:
    """Return a set-up's rates, with another host bandwidth if one is given."""
    host = setup.engine.host
    if host_gb_per_s is not None:
        host = replace(host, attention_gb_per_s=host_gb_per_s)
    tokens = setup.engine.capacity.device_kv_tokens
    rows = max(1, tokens // CONTEXT)
    costs = replace(setup.engine, host=host).cost_model.costs
    load = Load(device_rows=rows, device_kv_tokens=rows * CONTEXT)
    alone = steady(costs, DEVICE_ONLY.name, load).iteration_s
    # So many keep the host busy for one iteration; pipelining's lasts two of them and more.
    busy = 3 * alone / (costs.num_layers * costs.host_attention(1, CONTEXT))
    rates = {}
    for name in STRATEGIES:
        wanted = max(2, round(busy * (1 if named(name).through else costs.num_layers)))
        outlook = Outlook(loads=((1.0, load),), host_rows=wanted, row_tokens=CONTEXT)
        rates[name] = Valuation(costs, outlook).best(name).rate
    return Steady(
        machine=setup.machine,
        setup=setup.label if host_gb_per_s is None else f"host {host_gb_per_s:g} GB/s, device KV {tokens:,}",
        device_kv_tokens=tokens,
        host_gb_per_s=host.attention_gb_per_s,
        rates=rates,
    )


def steady_rates(setups: Sequence[Setup]) -> list[Steady]:
    """Return the rates over host bandwidths, for every amount of KV on the device that the set-ups have."""
    distinct = {(setup.machine, setup.engine.capacity.device_kv_tokens): setup for setup in setups}
    return [steady_at(setup, rate) for setup in distinct.values() for rate in HOST_GB_PER_S]


def steady_gains(setups: Sequence[Setup]) -> list[Gain]:
    """Return the gains of the set-ups, and at other host bandwidths for every amount of KV on the device."""
    own = [steady_at(setup) for setup in setups]
    known = {_machine(each) for each in own}
    others = [each for each in steady_rates(setups) if _machine(each) not in known]
    return [gain for each in (*own, *others) for gain in _gains(each)]


def _machine(steady: Steady) -> tuple[str, int, float]:
    return steady.machine, steady.device_kv_tokens, steady.host_gb_per_s


def _gains(steady: Steady) -> Iterator[Gain]:
    """The best hybrid scheduler is pipelining where that pays, else the device alone."""
    rates = steady.rates
    alone, pipelining, best = rates[DEVICE_ONLY.name], rates[ASYMMETRIC_PIPELINING.name], max(rates.values())
    ratios = {
        DEVICE_ONLY.name: best / alone,
        "pipelining": best / max(alone, pipelining),
        "overlap": rates[ASYNC_OVERLAP.name] / pipelining,
    }
    for over, ratio in ratios.items():
        percent = 100 * (ratio - 1)
        yield Gain(machine=steady.machine, setup=steady.setup, workload="steady", over=over, percent=percent)
