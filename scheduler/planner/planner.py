"""The policy behind strategy "auto": of all strategies' candidates the one with the best predicted rate."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ..admission import Tier
from ..cost_model.cost_model import CostModel
from ..cost_model.prediction import Load, Terms
from ..policy import Decision, Situation
from ..strategies import DEVICE_ONLY, STRATEGIES, named
from .candidates import Candidate, Outlook, Valuation, best_within
from .courses import Courses
from .forecast import Limits, Prompts, next_load, outlooks, prompts_begin
from .host_row_selection import riding
from .journey import ALONE, Course, Room
from .lookahead import PHASES
from .options import PlannerOptions
from .pacing import Pacing
from .paper_rule import PaperRule
from .reasons import reason

KEPT = 16
"""Choices that differ from the one before them, and are kept for people."""

REMEMBERED = 4096
"""Choices kept for situations that come again: batches drain and fill through the same ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A decision and what led to it.

    Attributes:
        decision: what was decided.
        situation: for which requests and memory.
        candidates: the best of each strategy for the host requests that exist; only device_only if there are none.
        target: the best of each strategy for as many host requests as could come to exist; empty if none could.
        rule: the paper's inequality, where it says anything.
        reason: why, for people.
        prompts: what iterations are taken to carry of prompts.
        courses: seconds until all requests have ended, by course, where it was looked ahead.
    """

    decision: Decision
    situation: Situation
    candidates: Mapping[str, Candidate]
    target: Mapping[str, Candidate]
    rule: PaperRule | None
    reason: str
    prompts: Prompts = field(default_factory=Prompts)
    courses: Mapping[Course, float] = field(default_factory=dict)


class Planner:
    """Chooses the strategy, the cohorts and how many requests are worth having on the host.

    Two outlooks are compared. What to do with the host requests that exist is decided among the candidates for them;
    whether requests may go to the host, among the candidates for as many as could come to exist. Where the latter gain
    enough, host requests ride from the first one on, even if so few of them gain less than the margin.

    Args:
        model: what iterations take.
        options: what somebody may ask for.

    Attributes:
        choices: the last decisions that differ from the one before.
    """

    def __init__(self, model: CostModel, options: PlannerOptions) -> None:
        self.model = model
        self.options = options
        self.choices: deque[Choice] = deque(maxlen=KEPT)
        limit = math.inf if options.max_time_per_token is None else options.max_time_per_token
        self._limits = Limits(
            device_requests=options.max_device_requests, host_requests=options.max_host_requests, token_s=limit
        )
        self._prompts = Prompts()
        self._key: tuple[int, ...] | None = None
        self._begun = False
        self._known: dict[tuple[str | None, bool, tuple[int, ...]], Choice] = {}
        self._factors = model.factors
        self._courses = Courses(margin=options.margin, phases=options.phases_at_once)
        self._basis: Choice | None = None
        self._weighed = False
        self._pacing = Pacing(model.costs)
        self._asked: tuple[Situation, Decision, bool] | None = None

    def latest(self) -> Choice | None:
        """Return the last decision with predictions for what there was then; None if there has been none.

        While a course is kept to, predictions are made only when it is thought over: they are made anew here.
        """
        if self._asked is None or not self.choices:
            return None
        situation, decision, begins = self._asked
        last = self.choices[-1]
        fresh = self.choose(situation, begins=begins)
        return replace(fresh, decision=decision, reason=last.reason, courses=last.courses)

    def decide(self, situation: Situation) -> Decision:
        """Return the decision for the next plan, the last one again if nothing has changed much since."""
        if situation.roster is not None and self.options.max_time_per_token is None:
            return self._keep_course(situation)
        page = self.model.profile.page_size
        begins = prompts_begin(situation, self._last.max_host_requests, page)
        self._prompts = self._prompts.after(next_load(situation, begins=begins), situation, first=self._key is None)
        key = self._material(situation)
        stale = _apart(self._factors, self.model.factors)
        if stale or len(self._known) > REMEMBERED:
            self._known.clear()
        if key != self._key or begins != self._begun or stale:
            self._factors = self.model.factors
            choice = self._recall(key, situation, begins=begins)
            if (again := prompts_begin(situation, choice.decision.max_host_requests, page)) != begins:
                begins, choice = again, self._recall(key, situation, begins=again)
            self._key, self._begun = key, begins
            if self.choices and self.choices[-1].decision.strategy == choice.decision.strategy:
                self.choices.pop()
            self.choices.append(choice)
        self._asked = situation, self._last, begins
        return self._last

    def _keep_course(self, situation: Situation) -> Decision:
        """Return what the best course demands, as all requests' lengths are known."""
        course = self._courses.present or ALONE
        page = self.model.profile.page_size
        begins = prompts_begin(situation, course.most, page)
        self._prompts = self._prompts.after(next_load(situation, begins=begins), situation, first=self._basis is None)
        if self._starving(situation):
            self.choices.append(self.choose(situation, begins=begins))
            self._asked = situation, self._last, begins
            return self._last
        if self._fits(situation):
            self._courses.forget()
        else:
            due = self._courses.is_due(situation, self.model.factors)
            if due:
                self._think(situation, begins=begins)
            if not due or self.options.phases_at_once > PHASES:
                self._courses.settle(1 + situation.undecided)
        course = self._courses.present or ALONE
        decision = riding(course, situation, self._pacing, begins=begins)
        self._record(situation, course, decision, begins=begins)
        self._asked = situation, decision, begins
        return decision

    def _record(self, situation: Situation, course: Course, decision: Decision, *, begins: bool) -> None:
        """Keep a decision that differs from the last one, or has been thought over, for people."""
        seconds = self._courses.seconds
        if self._basis is None:
            self._basis = self.choose(situation, begins=begins)
        if self.choices and self.choices[-1].decision.strategy == decision.strategy:
            if self.choices[-1].courses is seconds:
                return
            self.choices.pop()
        reason = self._course_reason(course, decision)
        self.choices.append(replace(self._basis, decision=decision, courses=seconds, reason=reason))

    def _fits(self, situation: Situation) -> bool:
        """Whether all requests find place on the device up to their ends, and none is elsewhere."""
        page = self.model.profile.page_size
        requests = situation.device_rows + situation.waiting
        tokens = situation.device_kv_tokens + situation.waiting_tokens
        tokens += situation.remaining_tokens + situation.waiting_output
        pages = (situation.device_kv_tokens + situation.free_device_tokens) // page
        # The last of them to come, where each has a page that is not full.
        device = Tier(pages, requests - 1, self.options.max_device_requests)
        return not situation.host_rows and device.takes_over(-(-tokens // page) + requests)

    def _think(self, situation: Situation, *, begins: bool) -> None:
        """Begin to compare courses: every strategy with all requests on board, and with as many as the host keeps in
        pace with, alone there or in turns with the others.

        Where decisions take time, rates are compared in one and the requests are gathered in the next.
        """
        costs, limit = self.model.costs, self.options.max_host_requests
        if not self._weighed:
            self._basis = self.choose(situation, begins=begins)
            self._weighed = True
            if self.options.phases_at_once <= PHASES:
                return
        assert self._basis is not None
        self._weighed = False
        self._pacing = Pacing(costs)
        courses = []
        everybody = outlooks(costs, situation, self._prompts, self._limits)[1].host_rows
        for strategy in self.options.strategies:
            if strategy == DEVICE_ONLY.name:
                continue
            best = self._basis.target.get(strategy)
            through = named(strategy).through
            cohorts = 0 if through or best is None else len(best.under_way)
            courses.append(Course(strategy, limit, limit, cohorts))
            if through:
                courses.append(Course(strategy, limit, limit, cohorts, rests=True))
            if best is not None and 0 < best.riding < everybody:
                courses.append(Course(strategy, best.riding, best.riding, cohorts))
                courses.append(Course(strategy, limit, best.riding, cohorts))
        assert situation.roster is not None
        self._courses.begin(situation, costs, self._room(situation), courses)

    def _room(self, situation: Situation) -> Room:
        page = self.model.profile.page_size
        assert situation.roster is not None
        roster = situation.roster()
        device, host = (
            page * sum(-(-(context - 1) // page) for context, _ in side) for side in (roster.device, roster.host)
        )
        return Room(
            device_tokens=device + situation.free_device_tokens,
            host_tokens=host + situation.free_host_tokens,
            page_size=page,
            device_requests=self.options.max_device_requests,
            prompt_tokens=self.options.max_prefill_tokens,
        )

    def _course_reason(self, course: Course, decision: Decision) -> str:
        seconds = self._courses.seconds
        if course == ALONE:
            return "no course ends clearly sooner" if seconds else "all requests fit on the device"
        alone = seconds.get(ALONE, math.inf)
        sooner = f"{alone / seconds[course]:.2f} times" if math.isfinite(alone) else "much"
        text = f"with {course.strategy} all requests end {sooner} sooner than on the device alone"
        return text if decision.strategy != DEVICE_ONLY.name else f"{text}; in this iteration nothing rides"

    @property
    def _last(self) -> Decision:
        return self.choices[-1].decision if self.choices else Decision(strategy=DEVICE_ONLY.name)

    def _recall(self, key: tuple[int, ...], situation: Situation, *, begins: bool) -> Choice:
        """Return the choice made before in such a situation, or make it."""
        again = (self.choices[-1].decision.strategy if self.choices else None, begins, key)
        choice = self._known.get(again)
        if choice is None:
            choice = self._known[again] = self.choose(situation, begins=begins)
        return choice

    def choose(self, situation: Situation, *, begins: bool = True) -> Choice:
        """Return the decision for a situation, and what leads to it.

        Args:
            situation: the requests and the memory there are.
            begins: whether the next iteration computes the prompts that the situation speaks of.
        """
        now, then = outlooks(self.model.costs, situation, self._prompts, self._limits)
        target = self._candidates(then) if then.host_rows else {}
        goal = self._pick(target, self.options.margin) if target else None
        admits = goal is not None and goal.strategy != DEVICE_ONLY.name
        candidates = self._candidates(now)
        starving = self._starving(situation)
        if starving:
            chosen = best_within((each for each in candidates.values() if each.riding), self._limits.token_s)
        else:
            chosen = self._pick(candidates, 0.0 if admits else self.options.margin)
            chosen = self._here(chosen, now, next_load(situation, begins=begins))
        return Choice(
            decision=Decision(
                strategy=chosen.strategy,
                lanes=chosen.lanes,
                max_host_requests=goal.riding if goal is not None and admits else 0,
            ),
            situation=situation,
            candidates=candidates,
            target=target,
            prompts=self._prompts,
            rule=PaperRule.of(self.model.costs, then.loads[0][1], then.host_rows, then.row_tokens),
            reason=reason(
                chosen,
                goal,
                candidates,
                target,
                limit_s=self._limits.token_s,
                margin=self.options.margin,
                starving=self.options.patience if starving else None,
                fit=self._fits(situation),
            ),
        )

    def _here(self, picked: Candidate, outlook: Outlook, load: Load) -> Candidate:
        """Return what to do in the very next iteration: with prompts or without, where that is free to differ.

        With a limit on time per token it is not: host rows that rested would have to catch up.
        """
        through = [strategy for strategy in self.options.strategies if named(strategy).through]
        free = not math.isfinite(self._limits.token_s) and picked.strategy in (DEVICE_ONLY.name, *through)
        if not (outlook.host_rows and free) or len(outlook.loads) == 1:
            return picked
        valuation = Valuation(self.model.costs, replace(outlook, loads=((1.0, load),)))
        candidates = [valuation.device_only(), *(valuation.best(strategy) for strategy in through)]
        return max(candidates, key=lambda each: each.rate)

    def _candidates(self, outlook: Outlook) -> dict[str, Candidate]:
        valuation = Valuation(self.model.costs, outlook)
        if not outlook.host_rows:
            return {DEVICE_ONLY.name: valuation.device_only()}
        allowed = {DEVICE_ONLY.name, *self.options.strategies}
        return {strategy: valuation.best(strategy) for strategy in STRATEGIES if strategy in allowed}

    def _pick(self, candidates: Mapping[str, Candidate], margin: float) -> Candidate:
        alone, limit = candidates[DEVICE_ONLY.name], self._limits.token_s
        best = best_within(candidates.values(), limit)
        if not best.keeps(limit):
            return best
        present = candidates.get(self.choices[-1].decision.strategy) if self.choices else None
        if present is not None and present.keeps(limit) and best.rate <= present.rate * (1 + self.options.loyalty):
            best = present
        return alone if alone.keeps(limit) and best.rate <= alone.rate * (1 + margin) else best

    def _starving(self, situation: Situation) -> bool:
        wait = self.options.patience * (situation.num_layers + 1)
        return situation.host_rows > 0 and situation.oldest_host_wait > wait

    def _material(self, situation: Situation) -> tuple[int, ...]:
        """What a decision depends on: many rows in steps of about 4 %, the rest in steps of 9 %."""
        device, host = situation.device_rows, situation.host_rows
        return (
            _few(device),
            _few(host),
            self._starving(situation),
            round(8 * self._prompts.chance),
            _step(situation.prefill_tokens),
            *map(
                _step,
                (
                    situation.device_kv_tokens / max(1, device),
                    situation.host_kv_tokens / max(1, host),
                    situation.waiting,
                    situation.waiting_tokens / max(1, situation.waiting),
                    situation.remaining_tokens / max(1, device + host),
                    situation.device_kv_tokens + situation.free_device_tokens,
                    situation.host_kv_tokens + situation.free_host_tokens,
                    self._prompts.tokens,
                ),
            ),
        )


def _step(count: float) -> int:
    return int(8 * math.log2(1 + count))


def _few(rows: int) -> int:
    return rows if rows <= 16 else 16 + int(16 * math.log2(rows))


def _apart(before: Terms, now: Terms) -> bool:
    return any(abs(a - b) > 0.01 * b for a, b in zip(before, now, strict=True))
