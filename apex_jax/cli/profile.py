"""`apex-jax profile`: what the parts of an iteration take on this machine with a model."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..scheduler.strategies import DEVICE_ONLY
from .arguments import add_engine_arguments, add_model_arguments, open_llm
from .charts import need_matplotlib, picture, write
from .errors import as_user_errors

if TYPE_CHECKING:
    from ..scheduler import Curve, Profile

HOST_KV_BYTES = 1 << 30
"""Host KV cache that is measured where none is asked for."""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command to the parser of `apex-jax`."""
    parser = commands.add_parser(
        "profile",
        help="measure what the parts of an iteration take, for strategy auto",
        description="Measure this machine with a model: linear layers over rows, attention over cached tokens on "
        "device and host, handing over, moving. The profile is kept and found again by engines of the same hardware, "
        "model sizes, types and versions; a second run shows it.",
    )
    add_model_arguments(parser)
    add_engine_arguments(parser)
    parser.add_argument("--again", action="store_true", help="measure even if a profile is kept")
    parser.add_argument("--json", action="store_true", help="print the profile as JSON instead of text")
    parser.add_argument("--plot", type=picture, metavar="FILE", help="draw it too; .png or .svg says which kind")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from ..profiling.store import profile_path
    from ..scheduler.cost_model.profile_io import encode

    if args.plot is not None:
        need_matplotlib()
    args.host_kv_bytes = getattr(args, "host_kv_bytes", HOST_KV_BYTES)
    # A planner would want the profile that is about to be measured; what only a planner heeds is left out.
    args.strategy, args.max_time_per_token, args.auto_profile = DEVICE_ONLY.name, None, False
    llm = open_llm(args)
    with as_user_errors(ValueError, OSError):
        profile = llm.profile(again=args.again, use_tqdm=True)
    llm.close()
    print(encode(profile) if args.json else "\n".join(_lines(profile, profile_path(profile.key))))
    if args.plot is not None:
        from ..profiling.chart import draw_profile

        write(draw_profile(profile), args.plot)
    return 0


def _lines(profile: Profile, path: Path) -> Iterator[str]:
    key = profile.key
    yield f"device    {key.device}"
    yield f"host      {key.host}"
    yield f"model     {key.model}; {key.dtypes}"
    yield f"software  {key.software}"
    yield f"kept in   {path if os.path.isfile(path) else 'nothing that could be written'}"
    yield ""
    layers = profile.num_layers
    yield from _row("linear, all layers", "rows", profile.layer, layers)
    yield from _row("head and sampling", "rows", profile.head)
    yield from _row("device attention", "tokens", profile.device_attention.tokens)
    yield from _row("prompt attention", "pairs", profile.prefill_attention)
    yield from _row("host attention, a layer", "rows", profile.host_attention.rows)
    yield from _row("", "tokens", profile.host_attention.tokens)
    yield from _row("hop", "rows", profile.hop)
    yield from _row("boarding a pass", "rows", profile.boarding)
    yield from _row("moving a request", "tokens", profile.migration)
    yield f"{'going by boundaries':24} {1e3 * profile.stepwise_overhead:.3f} ms an iteration"


def _row(name: str, unit: str, curve: Curve, times: int = 1) -> Iterator[str]:
    from ..scheduler.cost_model.curve import UNBOUNDED

    points = [point for point in curve.points if point[0] < UNBOUNDED]
    constant = len(points) < len(curve.points) and curve(0) == curve(UNBOUNDED)
    counts = ["any" if constant else f"{count:,.0f}" for count, _ in points]
    yield f"{name:24} {unit:>7}  " + " ".join(f"{count:>9}" for count in counts)
    yield f"{'':24} {'ms':>7}  " + " ".join(f"{1e3 * times * seconds:9.3f}" for _, seconds in points)
