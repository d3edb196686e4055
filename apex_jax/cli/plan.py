"""`apex-jax plan`: what a strategy does in an iteration, in words and as a picture."""

from __future__ import annotations

import argparse

from ..scheduler.strategies import STRATEGIES
from .charts import add_output_argument, need_matplotlib, write
from .errors import as_user_errors
from .numbers import add_number


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command to the parser of `apex-jax`."""
    parser = commands.add_parser(
        "plan",
        help="say and draw what a strategy does in one iteration",
        description="Say and draw the plan of one iteration in the middle of a long run: which rows ride at which "
        "layer boundary, where host rows board and are parked, where the device waits for the host.",
    )
    parser.add_argument("--strategy", choices=STRATEGIES, required=True, help=", ".join(STRATEGIES), metavar="NAME")
    add_number(parser, "--layers", "L", "layers of the model", kind=int, default=16)
    add_number(parser, "--device-rows", "N", "requests on the device", kind=int, default=8)
    add_number(parser, "--host-rows", "N", "requests on the host", kind=int, default=0)
    cohorts = "cohorts that async_overlap deals the host rows to"
    add_number(parser, "--cohorts", "N", cohorts, kind=int, default=2)
    number = "which plan; cohorts of async_overlap are a boundary further in each"
    add_number(parser, "--number", "N", number, kind=int, default=0)
    add_output_argument(parser, required=False)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from ..tracing.plan_chart import draw_plan
    from ..tracing.plan_layout import describe
    from ..tracing.steady_plans import steady_plan

    if args.output is not None:
        need_matplotlib()
    with as_user_errors(ValueError):
        plan = steady_plan(
            args.strategy,
            num_layers=args.layers,
            device_rows=args.device_rows,
            host_rows=args.host_rows,
            num_cohorts=args.cohorts,
            number=args.number,
        )
    print(describe(plan))
    print(plan)
    if args.output is not None:
        write(draw_plan(plan), args.output)
    return 0
