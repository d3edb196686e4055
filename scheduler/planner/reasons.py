"""Why a decision was taken, in words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

from ..strategies import DEVICE_ONLY
from .candidates import Candidate
from .options import MARGIN, PATIENCE


def reason(
    chosen: Candidate,
    goal: Candidate | None,
    candidates: Mapping[str, Candidate],
    target: Mapping[str, Candidate],
    *,
    limit_s: float,
    starving: bool,
    fit: bool,
) -> str:
    """Return why rates led to a decision.

    Args:
        chosen: the choice among `candidates`, those for the requests that exist.
        goal: the choice among `target`, those for as many host requests as could come to exist; None without any.
        limit_s: time per token that no request should exceed, infinity for none.
        starving: a host request has rested for `PATIENCE`, and that decided.
        fit: all requests fit on the device up to their ends.
    """
    if starving:
        text = f"a host request has rested for {PATIENCE} tokens' worth of iterations, so they ride"
    elif not chosen.keeps(limit_s):
        text = ""
    elif chosen.strategy != DEVICE_ONLY.name:
        text = _gain(chosen, candidates[DEVICE_ONLY.name])
    elif goal is not None and not goal.keeps(limit_s):
        text = ""
    else:
        text = _alone(goal, fit=fit, ruled_out=bool(_late(target.values(), limit_s)))
    parts = [text, *_limit(chosen, goal, candidates, target, limit_s)]
    return "; ".join(part for part in parts if part)


def milliseconds(seconds: float) -> str:
    """Return milliseconds in three or four figures."""
    value = 1e3 * seconds
    if value == 0:
        return "-"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.{1 if value >= 10 else 3}f}"


def _gain(chosen: Candidate, alone: Candidate) -> str:
    gain = f"{chosen.rate / alone.rate:.2f} times device_only's rate" if alone.rate else "nothing is on the device"
    return f"predicted best, {gain}"


def _alone(goal: Candidate | None, *, fit: bool, ruled_out: bool) -> str:
    if goal is None:
        return "all requests fit on the device" if fit else "no request has to go to the host, or none can"
    if goal.strategy != DEVICE_ONLY.name:
        return f"{goal.strategy} will pay once requests are on the host"
    within = " within the limit" if ruled_out else ""
    return f"nothing gains more than {100 * MARGIN:.0f} % over device_only{within}"


def _limit(
    chosen: Candidate,
    goal: Candidate | None,
    candidates: Mapping[str, Candidate],
    target: Mapping[str, Candidate],
    limit_s: float,
) -> Iterator[str]:
    """Yield what a limit on time per token has to do with it."""
    if math.isinf(limit_s):
        return
    limit = f"the limit of {milliseconds(limit_s)} ms a token"
    if not chosen.keeps(limit_s):
        yield f"no plan keeps {limit}, this is the least late with {milliseconds(chosen.token_s)} ms"
        return
    if goal is not None and not chosen.riding and not goal.keeps(limit_s):
        late_s = milliseconds(goal.token_s)
        yield f"with all that wait no plan keeps {limit}, {goal.strategy} is the least late with {late_s} ms"
        return
    late = _late(candidates.values(), limit_s)
    # Where nobody is on the host yet, the limit says who may go there.
    late = late or ([] if chosen.riding else _late(target.values(), limit_s))
    yield f"{', '.join(late)} would break {limit}" if late else f"within {limit}"


def _late(candidates: Iterable[Candidate], limit_s: float) -> list[str]:
    return [f"{each.strategy} ({_how_late(each)})" for each in candidates if not each.keeps(limit_s)]


def _how_late(candidate: Candidate) -> str:
    if math.isinf(candidate.token_s):
        return "host requests get no tokens"
    return f"{milliseconds(candidate.token_s)} ms"
