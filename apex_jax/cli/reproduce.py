"""`apex-jax reproduce`: the paper's claims beside simulations, as tables and figures."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import UserError, as_user_errors
from .numbers import add_number
from .progress import Progress

if TYPE_CHECKING:
    from ..reproduce.runs import Run, Task
    from ..reproduce.setups import Setup, Workload


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command to the parser of `apex-jax`."""
    parser = commands.add_parser(
        "reproduce",
        help="the paper's claims beside simulations, as tables and figures",
        description="Simulate the paper's machines and workloads, and write tables (CSV) and figures (PNG, SVG, PDF) "
        "of its claims beside what comes out. Takes minutes. What is not known of its set-ups is varied.",
    )
    parser.add_argument("--out", type=Path, default=Path("results"), metavar="FOLDER", help="(default: %(default)s)")
    add_number(parser, "--requests", "N", "of each simulation", default=400)
    parser.add_argument("--seed", type=int, default=0, help="of lengths that are drawn (default: %(default)s)")
    group = parser.add_argument_group("recorded lengths", "in place of lengths drawn from published moments")
    for name in ("azure-code", "azure-conversation", "summarisation"):
        group.add_argument(f"--{name}", type=Path, metavar="FILE", help="CSV in the Azure traces' form, or JSON")
    parser.set_defaults(run=_run)


def _made(task: Task, advance: Callable[[], object]) -> Run:
    run = task.run()
    advance()
    return run


def _left_out(missing: tuple[Setup, Workload]) -> str:
    setup, workload = missing
    return (
        f"left out: {workload.group} on {setup.machine}, {setup.label}: none of {len(workload.jobs):,} requests fits "
        f"into the {setup.engine.longest:,} tokens of the device's KV"
    )


def _refuse_useless_files(
    files: Mapping[str, Path | None], machines: Sequence[Setup], too_long: Sequence[tuple[Setup, Workload]]
) -> None:
    """Refuse recorded lengths of which nothing could be simulated anywhere."""
    longest = max(setup.engine.longest for setup in machines)
    for name, file in files.items():
        if file is not None and sum(workload.name == name for _, workload in too_long) == len(machines):
            raise UserError(f"{file}: no request fits into the {longest:,} tokens of the largest device's KV")


def _run(args: argparse.Namespace) -> int:
    from ..reproduce import runs, setups, steady, tables
    from ..reproduce.figures import draw_all
    from ..reproduce.gains import gains_of
    from ..scheduler.simulation.recorded import read_trace

    try:
        import matplotlib  # noqa: F401 minutes of simulation would be lost without it
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is missing; install the `plot` extra: pip install 'apex-jax[plot]'") from error
    with as_user_errors(ValueError, OSError):
        names = ("azure-code", "azure-conversation", "summarisation")
        files = {name: getattr(args, name.replace("-", "_")) for name in names}
        traces = {name: read_trace(file).jobs for name, file in files.items() if file is not None}
        args.out.mkdir(parents=True, exist_ok=True)
    machines = setups.setups()
    served = {
        machine: setups.workloads(machine, args.requests, traces, seed=args.seed)
        for machine in dict.fromkeys(setup.machine for setup in machines)
    }
    too_long = list(runs.too_long(machines, served))
    _refuse_useless_files(files, machines, too_long)
    tasks = list(runs.workload_tasks(machines, served, args.requests))
    swept = list(runs.sweep_tasks(machines, args.requests))
    with Progress(sys.stderr).counting(len(tasks) + len(swept), "simulation") as advance:
        done = [_made(task, advance) for task in tasks]
        sweep = [_made(task, advance) for task in swept]
    decoding = steady.steady_rates(machines)
    gains = [*gains_of(done), *steady.steady_gains(machines)]
    found = tables.comparisons(gains)
    with as_user_errors(OSError):
        tables.write_runs(args.out / "simulations.csv", done)
        tables.write_runs(args.out / "gain_over_output.csv", sweep)
        tables.write_rows(args.out / "steady_decode.csv", [each.row() for each in decoding])
        tables.write_gains(args.out / "gains.csv", gains)
        tables.write_claims(args.out / "claims.csv", found)
        drawn = draw_all(args.out, done, sweep, decoding, found)
    for line in (*tables.claim_lines(found), *map(_left_out, too_long)):
        print(line)
    print(f"wrote 5 tables and {len(drawn)} figures into {args.out}")
    return 0
