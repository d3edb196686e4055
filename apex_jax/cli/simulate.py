"""`apex-jax simulate`: what serving a workload takes on a machine that is described by its rates, in virtual time."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..scheduler.strategies import STRATEGIES
from .catalogue_list import catalogue_lines
from .errors import UserError, as_user_errors
from .memory_warning import warn_of_memory
from .numbers import add_number, not_negative, positive
from .progress import Progress

if TYPE_CHECKING:
    from ..scheduler.capacity import Capacity
    from ..scheduler.cost_model.catalogue import Catalogue
    from ..scheduler.cost_model.profile import Padding
    from ..scheduler.simulation.workload import Job

CHOICES = ("auto", *STRATEGIES)


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Add the command to the parser of `apex-jax`."""
    parser = commands.add_parser(
        "simulate",
        help="serve a workload in virtual time on a described machine",
        description="Serve a workload in virtual time on a device and a host that are described by their rates. "
        "Numbers are simulated: they follow from the rates, nothing is measured. Names of devices, hosts and models: "
        "`apex-jax simulate --list`.",
    )
    parser.add_argument("--list", action="store_true", help="print what can be named, with sources, and end")
    _add_machine(parser)
    _add_workload(parser)
    parser.add_argument("--json", action="store_true", help="print a JSON object instead of text")
    parser.set_defaults(run=_run)


def _add_machine(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("machine")
    group.add_argument("--device", default="t4", help="accelerator (default: %(default)s)")
    group.add_argument("--host", help="host (default: the one that goes with the device; it is named)")
    group.add_argument("--model", default="llama-2-7b", help="model (default: %(default)s)")
    group.add_argument(
        "--hardware", type=Path, metavar="FILE", help="JSON file with devices, hosts, models of your own"
    )
    group.add_argument(
        "--strategy",
        default="auto",
        choices=CHOICES,
        metavar="NAME",
        help=f"{', '.join(CHOICES)}; hybrid ones are used where they are predicted to gain (default: %(default)s)",
    )
    group.add_argument(
        "--max-time-per-token",
        type=positive,
        metavar="S",
        help="seconds that no running request should wait longer for a token; rules out plans predicted to break it",
    )
    add_number(group, "--device-kv-tokens", "N", "KV on the device (default: what fits)")
    add_number(group, "--host-kv-gb", "GB", "KV on the host (default: 90 %% of its memory)", kind=positive)
    add_number(group, "--page-size", "S", "tokens in a page", default=16)
    add_number(group, "--max-prefill-tokens", "N", "of an iteration", default=1024)
    add_number(group, "--max-num-seqs", "N", "on the device", default=256)
    group.add_argument(
        "--prefill-alone",
        action="store_true",
        help="compute prompts in iterations of their own, as engines without chunked prefill do",
    )
    group.add_argument(
        "--iteration-overhead-ms",
        type=not_negative,
        default=0.0,
        metavar="MS",
        help="what every iteration takes beside its work, as an engine that launches each operation by itself does",
    )
    group.add_argument(
        "--pad-batches",
        action="store_true",
        help="batches cost what the next size does that this engine compiles programs for (default: their own rows)",
    )


def _add_workload(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("workload", "recorded requests, or requests of one size")
    group.add_argument("--recorded", type=Path, metavar="FILE", help="CSV in the Azure traces' form, or JSON")
    group.add_argument("--trace", type=_renamed, help=argparse.SUPPRESS)
    add_number(group, "--input", "N", "prompt tokens of each request")
    add_number(group, "--output", "N", "output tokens of each request")
    add_number(group, "--requests", "N", "how many (of a file, the first; default: all)")
    add_number(group, "--rate", "R", "random arrivals, R requests a second (default: all at once)", kind=positive)
    group.add_argument("--timed", action="store_true", help="arrivals as the file has them")
    group.add_argument("--seed", type=int, default=0, help="of random arrivals (default: 0)")


def _renamed(file: str) -> Path:
    raise argparse.ArgumentTypeError(
        f"requests to serve are given with --recorded {file}; --trace is what other commands write"
    )


def _run(args: argparse.Namespace) -> int:
    from ..scheduler.cost_model.catalogue import Catalogue

    with as_user_errors(ValueError, OSError):
        catalogue = Catalogue.built_in()
        if args.hardware is not None:
            catalogue = catalogue.extended(args.hardware)
        if args.list:
            print("\n".join(catalogue_lines(catalogue)))
            return 0
        jobs, without_output = _jobs(args)
        row = _simulate(args, catalogue, jobs)
        row["requests_without_output"] = without_output
    if args.json:
        print(json.dumps(row, indent=2))
    else:
        _print_row(row)
    return 0


def _jobs(args: argparse.Namespace) -> tuple[list[Job], int]:
    """Return the requests, and how many others of a trace have no output."""
    from ..scheduler.simulation.recorded import read_trace
    from ..scheduler.simulation.workload import arriving, at_once, equal

    without_output = 0
    if args.recorded is not None:
        if args.input is not None or args.output is not None:
            raise UserError("--recorded brings its own lengths; leave --input and --output out")
        if args.timed and args.rate is not None:
            raise UserError("--timed keeps the file's arrivals; leave --rate out")
        trace = read_trace(args.recorded)
        if args.timed and not trace.has_arrivals:
            raise UserError(f"--timed: {args.recorded} has requests without arrival_s")
        jobs, without_output = list(trace.jobs[: args.requests]), trace.without_output
        jobs = jobs if args.timed else at_once(jobs)
    else:
        if args.input is None or args.output is None:
            raise UserError("give a workload: --recorded FILE, or --input N --output N [--requests N]")
        if args.timed:
            raise UserError("--timed is for --recorded")
        jobs = equal(prompt=args.input, output=args.output, requests=args.requests or 1000)
    jobs = jobs if args.rate is None else arriving(jobs, rate=args.rate, seed=args.seed)
    return jobs, without_output


def _simulate(args: argparse.Namespace, catalogue: Catalogue, jobs: list[Job]) -> dict[str, Any]:
    from ..scheduler.experiment import Experiment
    from ..scheduler.simulation.workload import fitting

    device = catalogue.device(args.device)
    host = catalogue.host_beside(device) if args.host is None else catalogue.host(args.host)
    experiment = Experiment(
        device=device,
        host=host,
        model=catalogue.model(args.model),
        strategy=args.strategy,
        device_kv_tokens=args.device_kv_tokens,
        host_kv_gb=args.host_kv_gb,
        page_size=args.page_size,
        max_prefill_tokens=args.max_prefill_tokens,
        max_num_seqs=args.max_num_seqs,
        prefill_alone=args.prefill_alone,
        iteration_overhead_s=args.iteration_overhead_ms * 1e-3,
        max_time_per_token=args.max_time_per_token,
    )
    if args.pad_batches:
        experiment = replace(experiment, padding=_padding(experiment.capacity))
    served = fitting(jobs, tokens=experiment.longest) if args.recorded is not None else jobs
    if not served:
        raise UserError(f"no request of the file fits into the {experiment.longest} tokens of the device's KV")
    warn_of_memory(
        sys.stderr,
        device=experiment.device,
        model=experiment.model,
        device_kv_tokens=args.device_kv_tokens,
        host=experiment.host,
        host_kv_gb=args.host_kv_gb,
    )
    with Progress(sys.stderr).counting(len(served), "request") as advance:
        result = experiment.run(served, progress=advance)
    return {
        "kind": "simulated",
        **experiment.described(),
        "host_assumed": args.host is None,
        "requests_too_long": len(jobs) - len(served),
        **asdict(result),
    }


def _padding(capacity: Capacity) -> Padding:
    """Return the batch sizes of an engine with the same limits, and its default number of host requests."""
    from ..execution.batch import HOST_SEQS, Buckets, padding_of

    capacity = replace(capacity, max_host_seqs=HOST_SEQS * capacity.max_num_seqs)
    return padding_of(Buckets(capacity=capacity, table_width=1, ragged_attention=True))


def _print_row(row: dict[str, Any]) -> None:
    assumed = " (assumed, see --host)" if row["host_assumed"] else ""
    where = f"{row['model']} on {row['device']} with {row['host']}{assumed}"
    limit = row["max_time_per_token"]
    within = "" if limit is None else f", at most {1e3 * limit:.4g} ms a token"
    print(f"{where}, strategy {row['strategy']}{within} (simulated)")
    memory = f"{row['device_kv_tokens']:,} tokens on the device, {row['host_kv_gb']:g} GB on the host"
    print(f"KV             {memory}, whose attention reads {row['host_attention_gb_per_s']:g} GB/s")
    tokens = f"{row['prompt_tokens']:,} prompt and {row['output_tokens']:,} output tokens"
    print(f"served         {row['requests']:,} requests, {tokens}, in {row['seconds']:,.1f} s")
    if row["requests_too_long"]:
        print(f"left out       {row['requests_too_long']:,} requests longer than the device's KV")
    if row["requests_without_output"]:
        print(f"left out       {row['requests_without_output']:,} requests of the file, which have no output")
    print(f"rate           {row['requests_per_s']:.4g} requests/s, {row['tokens_per_s']:.4g} output tokens/s")
    for side in ("device", "host"):
        if row[f"tpot_{side}_ms"] is not None:
            mean, late = row[f"tpot_{side}_ms"], row[f"tpot_{side}_p99_ms"]
            made = f"{row[f'{side}_tokens']:,} tokens, {mean:.4g} ms each, 99th percentile {late:.4g} ms"
            print(f"{side:<14} {made}; busy {row[f'{side}_busy']:.0%}")
    print(f"first token    {row['ttft_s']:.4g} s after arrival")
    shares = ", ".join(f"{name} {count:,}" for name, count in row["iterations_by_strategy"].items())
    print(f"iterations     {row['iterations']:,}: {shares}")
    moves = f"{row['evictions']:,} to the host, {row['fetches']:,} back; {row['preemptions']:,} computed again"
    print(f"moves          {moves}")
    if row["extrapolated"]:
        print(
            f"extrapolated   {row['extrapolated']:.0%} of the time lies in iterations that the profile does not cover"
        )
