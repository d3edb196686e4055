"""Jobs of measured length in virtual time: what a device does with cohorts whose host is late.

One iteration passes boundaries 0 to L. A cohort rides one boundary an iteration, after which its next job joins the
host's queue; jobs are done in the order of submission. At a boundary whose cohort's job is not done yet there are three
policies:

    wait             the device stops until the job is done, and everybody with it
    sit_out          all others go on, and the cohort has its next chance at the same boundary an iteration later. That
                     is decided one pass before the device gets there, since its queue must not run dry, and one cohort
                     rides a boundary in an iteration: of those that meet there, the first to be ready
    sit_out_at_best  what no runtime can do: the decision falls at the last moment and costs nothing, and cohorts that
                     meet at a boundary ride it together as if they were one
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Literal, get_args

Policy = Literal["wait", "sit_out", "sit_out_at_best"]

WARM_UP_TOKENS = 4
"""Tokens of each cohort that are not counted: all begin with an idle host."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What is replayed.

    Attributes:
        boundaries: L + 1.
        boundary_s: device time from one boundary to the next without a cohort, attention included.
        riding_s: what a cohort on board adds to that.
        transfer_s: to the host and back, together.
        job_s: the host's jobs, in the order in which they are taken; from the first again after the last.
        cohorts: how many are under way.
        cohort_rows: requests of each.
        device_rows: requests on the device.

    Raises:
        ValueError: a number is out of range.
    """

    boundaries: int
    boundary_s: float
    riding_s: float
    transfer_s: float
    job_s: Sequence[float]
    cohorts: int
    cohort_rows: float
    device_rows: float

    def __post_init__(self) -> None:
        if not 1 <= self.cohorts <= self.boundaries:
            raise ValueError(f"cohorts is {self.cohorts}; 1 to {self.boundaries}, the boundaries, are allowed")
        if not self.job_s or min(self.job_s) <= 0:
            raise ValueError("job_s needs at least one job, and every job some time")
        if self.boundary_s <= 0 or min(self.riding_s, self.transfer_s) < 0:
            raise ValueError(
                f"boundary_s is {self.boundary_s}, riding_s {self.riding_s} and transfer_s {self.transfer_s}; the "
                "first has to be above 0, the others at least 0"
            )

    @property
    def iteration_s(self) -> float:
        """Device time of an iteration in which every cohort rides and none is late."""
        return self.boundaries * self.boundary_s + self.cohorts * self.riding_s

    @property
    def load(self) -> float:
        """Host time of an iteration in which every cohort rides, over the device's."""
        mean = sum(self.job_s) / len(self.job_s)
        return self.cohorts * (1 - 1 / self.boundaries) * mean / self.iteration_s


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of it.

    Attributes:
        tokens_per_s: of device and host requests.
        device_token_s: mean time of an iteration, that is of a device request's token.
        host_token_s: mean time of a host request's token; infinite if none came.
        waited: share of the time in which the device waited.
        missed: share of the boardings that were due at which a cohort sat out.
    """

    tokens_per_s: float
    device_token_s: float
    host_token_s: float
    waited: float
    missed: float


@dataclass(kw_only=True)
class _Cohort:
    position: int
    ready_s: float = 0.0


def replay(scene: Scene, policy: Policy, *, iterations: int) -> Outcome:
    """Run a scene.

    Args:
        scene: what happens.
        policy: what is done about a cohort that is late, see above.
        iterations: that are counted, after some that are not.

    Raises:
        ValueError: there is no such policy.
    """
    if policy not in get_args(Policy):
        raise ValueError(f"there is no policy {policy!r}; the policies are {', '.join(get_args(Policy))}")
    jobs = cycle(scene.job_s)
    # Those that begin in mid token have their results.
    cohorts = [_Cohort(position=scene.boundaries * index // scene.cohorts) for index in range(scene.cohorts)]
    now = host_free = began = waited = 0.0
    tokens = due = missed = 0
    skipped = WARM_UP_TOKENS * scene.boundaries
    for iteration in range(skipped + iterations):
        if iteration == skipped:
            began, waited, tokens, due, missed = now, 0.0, 0, 0, 0
        at = [[cohort for cohort in cohorts if cohort.position == boundary] for boundary in range(scene.boundaries)]
        for boundary, here in enumerate(at):
            riding = _riding(here, policy, now=now, ahead=scene.boundary_s)
            due += len(here)
            missed += len(here) - len(riding)
            late = max((cohort.ready_s - now for cohort in riding), default=0.0)
            if late > 0:
                waited += late
                now += late
            now += scene.boundary_s + (scene.riding_s if riding else 0.0)
            for cohort in riding:
                cohort.position = (boundary + 1) % scene.boundaries
                if cohort.position == 0:
                    tokens += 1
                    continue
                host_free = max(host_free, now + scene.transfer_s / 2) + next(jobs)
                cohort.ready_s = host_free + scene.transfer_s / 2
    seconds = now - began
    return Outcome(
        tokens_per_s=(iterations * scene.device_rows + tokens * scene.cohort_rows) / seconds,
        device_token_s=seconds / iterations,
        host_token_s=seconds * scene.cohorts / tokens if tokens else math.inf,
        waited=waited / seconds,
        missed=missed / due if due else 0.0,
    )


def _riding(here: list[_Cohort], policy: Policy, *, now: float, ahead: float) -> list[_Cohort]:
    """Return those of the cohorts at a boundary that ride it, some of which the device may have to wait for."""
    if policy == "wait":
        return here
    if policy == "sit_out_at_best":
        return [cohort for cohort in here if cohort.ready_s <= now]
    return sorted((cohort for cohort in here if cohort.ready_s <= now - ahead), key=lambda cohort: cohort.ready_s)[:1]


def at_load(scene: Scene, load: float) -> Scene:
    """Return a scene whose jobs are longer or shorter, all by the same factor, so that its load is that."""
    factor = load / scene.load
    return replace(scene, job_s=[factor * seconds for seconds in scene.job_s])


def thinned(scene: Scene, load: float) -> Scene:
    """Return a scene with fewer requests in every cohort, and jobs as much shorter, so that its load is that.

    Rows of a batch are taken to cost the device what they did, since batches are padded.
    """
    return replace(at_load(scene, load), cohort_rows=scene.cohort_rows * load / scene.load)
