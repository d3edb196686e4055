"""`apex-jax explain`: what a planner would decide for given requests, and why."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import UserError, as_user_errors
from .numbers import add_number, count_or_zero

if TYPE_CHECKING:
    from ..scheduler import Profile, Situation


MACHINE = {"device": "t4", "host": "g4dn.4xlarge", "model": "llama-2-7b"}
"""What is described where nothing else is named."""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command to the parser of `apex-jax`."""
    parser = commands.add_parser(
        "explain",
        help="say which strategy is predicted best for given requests, and why",
        description="Say what strategy auto decides for given requests and memory: predicted times and rate of each "
        "strategy, the paper's inequality with both sides filled in, and the choice. The machine is a measured profile "
        "(`apex-jax profile`) or a described one; names: `apex-jax simulate --list`.",
    )
    machine = parser.add_argument_group("machine")
    machine.add_argument("--profile", type=Path, metavar="FILE", help="a measured profile, in place of the next three")
    for name, what in (("device", "accelerator"), ("host", "host"), ("model", "model")):
        machine.add_argument(f"--{name}", help=f"{what} (default: {MACHINE[name]})")
    requests = parser.add_argument_group("requests and memory")
    for option, what in (
        ("--device-requests", "that decode on the device"),
        ("--host-requests", "that live on the host"),
        ("--waiting", "that have no pages yet"),
    ):
        requests.add_argument(option, type=count_or_zero, default=0, metavar="N", help=what)
    add_number(requests, "--context", "N", "tokens of each context", default=512)
    add_number(requests, "--remaining", "N", "tokens that each still produces", default=128)
    for option, what in (
        ("--prompt-tokens", "computed in this iteration"),
        ("--free-device-tokens", "that free device pages hold"),
        ("--free-host-tokens", "that free host pages hold"),
    ):
        add_number(requests, option, "N", what, kind=count_or_zero, default=0)
    requests.add_argument(
        "--max-time-per-token",
        type=float,
        metavar="S",
        help="seconds that no running request should wait longer for a token; rules out plans predicted to break it",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object, in seconds, instead of text")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from ..scheduler import Capacity, CostModel
    from ..scheduler.planner.explain import explain
    from ..scheduler.planner.explain_values import explain_values
    from ..scheduler.planner.options import PlannerOptions
    from ..scheduler.planner.planner import Planner

    if not args.device_requests + args.host_requests + args.waiting:
        raise UserError("there are no requests: give --device-requests, --host-requests or --waiting")
    with as_user_errors(ValueError, OSError):
        profile = _profile(args)
        situation = _situation(args, profile.num_layers)
        capacity = Capacity(
            device_kv_tokens=max(profile.page_size, situation.device_kv_tokens + situation.free_device_tokens),
            host_kv_tokens=situation.host_kv_tokens + situation.free_host_tokens,
            page_size=profile.page_size,
            max_num_seqs=max(256, args.device_requests),
            max_host_seqs=max(4096, args.host_requests),
            max_prefill_tokens=2048,
        )
        options = PlannerOptions(max_time_per_token=args.max_time_per_token)
        planner = Planner(CostModel(profile), capacity, options)
        planner.settle(situation)
    print(json.dumps(explain_values(planner), indent=2) if args.json else explain(planner))
    return 0


def _profile(args: argparse.Namespace) -> Profile:
    from ..scheduler import describe, load_profile
    from ..scheduler.cost_model.catalogue import Catalogue

    given = {name: getattr(args, name) for name in MACHINE if getattr(args, name) is not None}
    if args.profile is not None:
        if given:
            names = ", ".join(f"--{name} {value}" for name, value in given.items())
            raise UserError(f"--profile brings its machine and model; leave {names} out")
        return load_profile(args.profile)
    known, machine = Catalogue.built_in(), {**MACHINE, **given}
    device, host, model = known.device(machine["device"]), known.host(machine["host"]), known.model(machine["model"])
    return describe(device, host, model, page_size=64)


def _situation(args: argparse.Namespace, num_layers: int) -> Situation:
    from ..scheduler import Roster, Situation

    sides = (args.device_requests, args.host_requests, args.waiting)
    lengths = [[(args.context, args.remaining)] * count for count in sides]
    running = args.device_requests + args.host_requests
    return Situation(
        num_layers=num_layers,
        device_rows=args.device_requests,
        device_kv_tokens=args.device_requests * args.context,
        host_rows=args.host_requests,
        host_kv_tokens=args.host_requests * args.context,
        prefill_tokens=args.prompt_tokens,
        waiting=args.waiting,
        waiting_tokens=args.waiting * args.context,
        waiting_first=args.context,
        waiting_output=args.waiting * args.remaining,
        remaining_tokens=running * args.remaining,
        host_remaining_tokens=args.host_requests * args.remaining,
        free_device_tokens=args.free_device_tokens,
        free_host_tokens=args.free_host_tokens,
        roster=lambda: Roster(*lengths),
    )
