"""The plan of an iteration in the middle of a long run, in which nobody comes or goes: what a strategy looks like."""

from __future__ import annotations

from ..scheduler.plan import Cohort, DecodeRow, Plan
from ..scheduler.policy import DEFAULT_COHORTS
from ..scheduler.strategies import Place, named


def steady_plan(
    strategy: str,
    *,
    num_layers: int,
    device_rows: int,
    host_rows: int = 0,
    num_cohorts: int = DEFAULT_COHORTS,
    number: int = 0,
    length: int = 512,
) -> Plan:
    """Return plan `number` of a run in which the same requests decode for ever.

    Args:
        strategy: which plan.
        num_layers: L.
        device_rows: requests on the device.
        host_rows: requests on the host; dealt out evenly to the cohorts.
        num_cohorts: of async_overlap, spread evenly over the L + 1 boundaries, or all of them going through where the
            device has no rows of its own. The other strategies have theirs.
        number: of the plan; cohorts of async_overlap ride one boundary further in each.
        length: context of every request in plan 0, in tokens.

    Raises:
        ValueError: a count is out of range, or the strategy has no place for the rows.
    """
    counts = {"num_layers": num_layers, "num_cohorts": num_cohorts, "length": length}
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} is {count}; at least 1 is needed")
    for name, count in {"device_rows": device_rows, "host_rows": host_rows, "number": number}.items():
        if count < 0:
            raise ValueError(f"{name} is {count}; it cannot be negative")
    if device_rows + host_rows == 0:
        raise ValueError("device_rows and host_rows are both 0; a plan needs rows")
    return Plan(
        number=number,
        num_layers=num_layers,
        strategy=strategy,
        decode=tuple(_row(request, length + number, number) for request in range(device_rows)),
        cohorts=_cohorts(strategy, num_layers, device_rows, host_rows, num_cohorts, number, length),
    )


def _cohorts(
    strategy: str, num_layers: int, device_rows: int, host_rows: int, num_cohorts: int, number: int, length: int
) -> tuple[Cohort, ...]:
    chosen, period = named(strategy), num_layers + 1
    most, count = chosen.most_cohorts(num_layers), chosen.cohorts(num_cohorts, num_layers)
    if not most and host_rows:
        raise ValueError(f"host_rows is {host_rows}; {strategy} has no place for host rows")
    if 0 < host_rows < count:
        raise ValueError(f"{host_rows} host rows are too few for the {count} cohorts of {strategy}")
    if num_cohorts > 1 and count == chosen.cohorts(num_cohorts - 1, num_layers) > chosen.cohorts(1, num_layers):
        raise ValueError(f"num_cohorts is {num_cohorts}; {num_layers} layers have {period} boundaries, one for each")
    count = count if host_rows else 0
    # In plan 0 no cohort of a few is at the ends, so that boarding and parking are both seen.
    ahead = period - max(1, period // (2 * num_cohorts))
    cohorts, whole = [], Place(number, 0, num_layers)
    for index in range(count):
        requests = range(device_rows + host_rows * index // count, device_rows + host_rows * (index + 1) // count)
        spaced = device_rows and not chosen.through
        token, first, last = chosen.place(index, count, number + period + ahead, num_layers) if spaced else whole
        rows = tuple(_row(request, length + token, token) for request in requests)
        cohorts.append(Cohort(id=token * count + index, rows=rows, first=first, last=last))
    return tuple(cohorts)


def _row(request: int, length: int, step: int) -> DecodeRow:
    return DecodeRow(request_id=request, slot=request, length=length, step=step)
