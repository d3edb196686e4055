"""The policy behind strategy "auto": of all strategies' candidates the one with the best predicted rate."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ..admission import Tier
from ..capacity import Capacity
from ..cost_model.cost_model import CostModel
from ..cost_model.prediction import Load, Terms
from ..policy import Decision
from ..scheduler_state import Roster, Situation
from ..strategies import DEVICE_ONLY, STRATEGIES, named
from .candidates import Candidate, Outlook, Valuation, best_within
from .courses import Courses
from .forecast import Prompts, next_load, outlooks, prompts_begin
from .host_row_selection import ALONE, Course, riding
from .options import LOYALTY, MARGIN, PATIENCE, PlannerOptions
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
        capacity: what there is; the memory of a situation goes before.
        options: what somebody may ask for.

    Attributes:
        choices: the last decisions that differ from the one before.
    """

    def __init__(self, model: CostModel, capacity: Capacity, options: PlannerOptions | None = None) -> None:
        self.model = model
        self.capacity = capacity
        self.options = options = options or PlannerOptions()
        self.choices: deque[Choice] = deque(maxlen=KEPT)
        self._limit_s = math.inf if options.max_time_per_token is None else options.max_time_per_token
        self._prompts = Prompts()
        self._key: tuple[tuple[int, ...], bool] | None = None
        self._rated: Choice | None = None
        self._known: dict[tuple[str | None, bool, tuple[int, ...]], Choice] = {}
        self._factors = model.factors
        self._courses = Courses(margin=MARGIN)
        self._basis: Choice | None = None
        self._weighed = False
        self._costs = model.costs
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
        """Return the decision for the next plan: what the best course demands, where all requests' lengths are known
        and courses have been compared, and what rates say otherwise."""
        course, page = self._courses.present, self.model.profile.page_size
        begins = prompts_begin(situation, self._last.max_host_requests if course is None else course.most, page)
        self._prompts = self._prompts.after(next_load(situation, begins=begins), situation, first=self._asked is None)
        ahead = situation.roster is not None and self.options.max_time_per_token is None
        course = self._look_ahead(situation, begins=begins) if ahead and not self._starving(situation) else None
        if course is None:
            choice, begins = self._rate(situation, begins=begins)
            decision = choice.decision
            if not self.choices or self.choices[-1] is not choice:
                self._keep(choice)
        else:
            decision = riding(course, situation, self._costs, begins=begins)
            self._record(situation, course, decision, begins=begins)
        self._asked = situation, decision, begins
        return decision

    def settle(self, situation: Situation) -> Decision:
        """Return what is decided in the end if the requests stay as they are."""
        decision = self.decide(situation)
        while self._weighed or self._courses.is_thinking:
            decision = self.decide(situation)
        return decision

    def _rate(self, situation: Situation, *, begins: bool) -> tuple[Choice, bool]:
        """Return what rates say, the last choice again if nothing has changed much since, and whether prompts begin."""
        key, page = self._material(situation), self.model.profile.page_size
        if _apart(self._factors, self.model.factors) or len(self._known) > REMEMBERED:
            self._known.clear()
            self._factors, self._rated = self.model.factors, None
        if self._rated is None or (key, begins) != self._key:
            choice = self._recall(key, situation, begins=begins)
            if (again := prompts_begin(situation, choice.decision.max_host_requests, page)) != begins:
                begins, choice = again, self._recall(key, situation, begins=again)
            self._key, self._rated = (key, begins), choice
        return self._rated, begins

    def _look_ahead(self, situation: Situation, *, begins: bool) -> Course | None:
        """Return the course to keep to; None before any have been compared.

        Of a comparison rates come in one decision, requests are gathered in the next, and their courses followed in
        those after it.
        """
        courses = self._courses
        if self._fits(situation):
            courses.forget()
            return ALONE
        if not courses.is_due(situation, self.model.factors):
            courses.settle(1 + situation.undecided, strategy=self._last.strategy)
        elif not self._weighed:
            self._basis = self._rate(situation, begins=begins)[0]
            self._weighed = True
        else:
            self._begin(situation)
            self._weighed = False
        return courses.present

    def _record(self, situation: Situation, course: Course, decision: Decision, *, begins: bool) -> None:
        """Keep a decision that differs from the last one, or has been thought over, for people."""
        seconds = self._courses.seconds
        last = self.choices[-1] if self.choices else None
        if last is not None and last.decision.strategy == decision.strategy and last.courses is seconds:
            return
        if self._basis is None:
            self._basis = self.choose(situation, begins=begins)
        reason = self._course_reason(course, decision)
        self._keep(replace(self._basis, decision=decision, courses=seconds, reason=reason))

    def _keep(self, choice: Choice) -> None:
        """Keep a choice for people, in place of the last one if the strategy is the same."""
        if self.choices and self.choices[-1].decision.strategy == choice.decision.strategy:
            self.choices.pop()
        self.choices.append(choice)

    def _fits(self, situation: Situation) -> bool:
        """Whether all requests find place on the device up to their ends, and none is elsewhere."""
        page = self.model.profile.page_size
        requests = situation.device_rows + situation.waiting
        tokens = situation.device_kv_tokens + situation.waiting_tokens
        tokens += situation.remaining_tokens + situation.waiting_output
        pages = (situation.device_kv_tokens + situation.free_device_tokens) // page
        # The last of them to come, where each has a page that is not full.
        device = Tier(pages, requests - 1, self.capacity.max_num_seqs)
        return not situation.host_rows and device.takes_over(-(-tokens // page) + requests)

    def _begin(self, situation: Situation) -> None:
        """Begin to compare courses: every strategy with all requests on board, and with as many as the host keeps in
        pace with, alone there or in turns with the others; first those of the strategy that rates name."""
        assert self._basis is not None
        assert situation.roster is not None
        costs, limit, target = self.model.costs, self.capacity.max_host_seqs, self._basis.target
        self._costs = costs
        courses = []
        everybody = outlooks(costs, situation, self._prompts, self.capacity, self._limit_s)[1].host_rows
        first = max(target, key=lambda strategy: target[strategy].rate) if target else None
        for strategy in sorted(self.options.strategies, key=lambda strategy: strategy != first):
            if strategy == DEVICE_ONLY.name:
                continue
            best, through = target.get(strategy), named(strategy).through
            cohorts = 0 if through or best is None else len(best.under_way)
            courses.append(Course(strategy, limit, limit, cohorts))
            if through:
                courses.append(Course(strategy, limit, limit, cohorts, rests=True))
            if best is not None and 0 < best.riding < everybody:
                courses.append(Course(strategy, best.riding, best.riding, cohorts))
                courses.append(Course(strategy, limit, best.riding, cohorts))
        # Turns are seldom best.
        courses.sort(key=lambda course: course.riding < course.most)
        roster = situation.roster()
        self._courses.begin(situation, costs, self._capacity(situation, roster), roster, courses)

    def _capacity(self, situation: Situation, roster: Roster) -> Capacity:
        page = self.capacity.page_size
        device, host = (
            page * sum(self.capacity.held_pages(context - 1) for context, _ in side)
            for side in (roster.device, roster.host)
        )
        return replace(
            self.capacity,
            device_kv_tokens=max(page, device + situation.free_device_tokens),
            host_kv_tokens=host + situation.free_host_tokens,
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
        now, then = outlooks(self.model.costs, situation, self._prompts, self.capacity, self._limit_s)
        target = self._candidates(then) if then.host_rows else {}
        goal = self._pick(target, MARGIN) if target else None
        admits = goal is not None and goal.strategy != DEVICE_ONLY.name
        candidates = self._candidates(now)
        starving = self._starving(situation)
        if starving:
            chosen = best_within((each for each in candidates.values() if each.riding), self._limit_s)
        else:
            chosen = self._pick(candidates, 0.0 if admits else MARGIN)
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
                limit_s=self._limit_s,
                starving=starving,
                fit=self._fits(situation),
            ),
        )

    def _here(self, picked: Candidate, outlook: Outlook, load: Load) -> Candidate:
        """Return what to do in the very next iteration: with prompts or without, where that is free to differ.

        With a limit on time per token it is not: host rows that rested would have to catch up.
        """
        through = [strategy for strategy in self.options.strategies if named(strategy).through]
        free = not math.isfinite(self._limit_s) and picked.strategy in (DEVICE_ONLY.name, *through)
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
        alone, limit = candidates[DEVICE_ONLY.name], self._limit_s
        best = best_within(candidates.values(), limit)
        if not best.keeps(limit):
            return best
        present = candidates.get(self.choices[-1].decision.strategy) if self.choices else None
        if present is not None and present.keeps(limit) and best.rate <= present.rate * (1 + LOYALTY):
            best = present
        return alone if alone.keeps(limit) and best.rate <= alone.rate * (1 + margin) else best

    def _starving(self, situation: Situation) -> bool:
        return situation.host_rows > 0 and situation.oldest_host_wait > PATIENCE * (situation.num_layers + 1)

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
