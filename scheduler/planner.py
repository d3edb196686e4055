"""The policy behind strategy "auto": of all strategies' candidates the one with the best predicted rate."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace

from .candidates import THROUGH, Candidate, Outlook, Valuation
from .cost_model import CostModel
from .forecast import Limits, Prompts, next_load, outlooks
from .paper_rule import PaperRule
from .plan import STRATEGIES, Strategy
from .policy import Decision, Situation
from .prediction import Load, Terms

KEPT = 16
"""Choices that differ from the one before them, and are kept for people."""

REMEMBERED = 4096
"""Choices kept for situations that come again: batches drain and fill through the same ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannerOptions:
    """What somebody may ask of the planner.

    Attributes:
        max_time_per_token: seconds that no request should wait longer for a token; plans that are predicted to break
            it are ruled out as long as another keeps it.
        margin: gain over device_only below which nothing leaves the device.
        loyalty: gain over the present strategy below which it stays.
        patience: tokens' worth of iterations after which a resting host request must be served.
        max_device_requests, max_host_requests: slots there are.
        strategies: those that may be chosen beside device_only, which always may.
    """

    max_time_per_token: float | None = None
    margin: float = 0.02
    loyalty: float = 0.01
    patience: int = 8
    max_device_requests: int
    max_host_requests: int
    strategies: tuple[Strategy, ...] = STRATEGIES

    def __post_init__(self) -> None:
        for strategy in self.strategies:
            if strategy not in STRATEGIES:
                raise ValueError(f"strategies has {strategy!r}; allowed are {', '.join(STRATEGIES)}")
        limit = self.max_time_per_token
        if limit is not None and not (math.isfinite(limit) and limit > 0):
            raise ValueError(f"max_time_per_token is {limit}; seconds above 0 are allowed")
        for name in ("margin", "loyalty"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} is {value}; finite numbers of 0 and more are allowed")
        for name, least in (("patience", 1), ("max_device_requests", 1), ("max_host_requests", 0)):
            value = getattr(self, name)
            if value < least:
                raise ValueError(f"{name} is {value}; at least {least} is needed")


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
    """

    decision: Decision
    situation: Situation
    candidates: Mapping[Strategy, Candidate]
    target: Mapping[Strategy, Candidate]
    rule: PaperRule | None
    reason: str


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
        self._known: dict[tuple[Strategy | None, bool, tuple[int, ...]], Choice] = {}
        self._factors = model.factors

    def decide(self, situation: Situation) -> Decision:
        """Return the decision for the next plan, the last one again if nothing has changed much since."""
        begins = self._begins(situation, self._last.max_host_requests)
        self._prompts = self._prompts.after(next_load(situation, begins=begins), situation, first=self._key is None)
        key = self._material(situation)
        stale = _apart(self._factors, self.model.factors)
        if stale or len(self._known) > REMEMBERED:
            self._known.clear()
        if key != self._key or begins != self._begun or stale:
            self._factors = self.model.factors
            choice = self._recall(key, situation, begins=begins)
            if (again := self._begins(situation, choice.decision.max_host_requests)) != begins:
                begins, choice = again, self._recall(key, situation, begins=again)
            self._key, self._begun = key, begins
            if self.choices and self.choices[-1].decision.strategy == choice.decision.strategy:
                self.choices.pop()
            self.choices.append(choice)
        return self._last

    @property
    def _last(self) -> Decision:
        return self.choices[-1].decision if self.choices else Decision(strategy="device_only")

    def _recall(self, key: tuple[int, ...], situation: Situation, *, begins: bool) -> Choice:
        """Return the choice made before in such a situation, or make it."""
        again = (self.choices[-1].decision.strategy if self.choices else None, begins, key)
        choice = self._known.get(again)
        if choice is None:
            choice = self._known[again] = self.choose(situation, begins=begins)
        return choice

    def _begins(self, situation: Situation, max_host_requests: int) -> bool:
        """Whether the very next iteration has prompts: one is under way, or the first that waits finds a place."""
        rows, page = situation.device_rows, self.model.profile.page_size
        vacancies = min(rows, max(0, max_host_requests - situation.host_rows))
        room = situation.free_device_tokens + vacancies * (situation.device_kv_tokens / max(1, rows) + page)
        # A page is left free for each device request.
        need = situation.waiting_tokens / max(1, situation.waiting) + page * (rows + 1)
        return situation.prefill_tokens > 0 and (not situation.waiting or situation.prefill_context > 0 or room >= need)

    def choose(self, situation: Situation, *, begins: bool = True) -> Choice:
        """Return the decision for a situation, and what leads to it.

        Args:
            situation: the requests and the memory there are.
            begins: whether the next iteration computes the prompts that the situation speaks of.
        """
        now, then = outlooks(self.model.costs, situation, self._prompts, self._limits)
        target = self._candidates(then) if then.host_rows else {}
        goal = self._pick(target, self.options.margin) if target else None
        admits = goal is not None and goal.strategy != "device_only"
        candidates = self._candidates(now)
        starving = self._starving(situation)
        if starving:
            riding = {strategy: each for strategy, each in candidates.items() if each.riding}
            chosen = max(riding.values(), key=lambda candidate: candidate.rate)
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
            rule=PaperRule.of(self.model.costs, then.loads[0][1], then.host_rows, then.row_tokens),
            reason=self._reason(chosen, goal, candidates, starving=starving),
        )

    def _here(self, picked: Candidate, outlook: Outlook, load: Load) -> Candidate:
        """Return what to do in the very next iteration: with prompts or without, where that is free to differ."""
        through: list[Strategy] = [strategy for strategy in THROUGH if strategy in self.options.strategies]
        if not outlook.host_rows or len(outlook.loads) == 1 or picked.strategy == "async_overlap":
            return picked
        valuation = Valuation(self.model.costs, replace(outlook, loads=((1.0, load),)))
        candidates = [valuation.device_only(), *(valuation.best(strategy) for strategy in through)]
        return max(
            (each for each in candidates if each.keeps(self._limits.token_s)),
            key=lambda each: each.rate,
            default=picked,
        )

    def _candidates(self, outlook: Outlook) -> dict[Strategy, Candidate]:
        valuation = Valuation(self.model.costs, outlook)
        if not outlook.host_rows:
            return {"device_only": valuation.device_only()}
        allowed = {"device_only", *self.options.strategies}
        return {strategy: valuation.best(strategy) for strategy in STRATEGIES if strategy in allowed}

    def _pick(self, candidates: Mapping[Strategy, Candidate], margin: float) -> Candidate:
        alone = candidates["device_only"]
        eligible = {name: each for name, each in candidates.items() if each.keeps(self._limits.token_s)}
        if not eligible:
            return alone
        best = max(eligible.values(), key=lambda candidate: candidate.rate)
        present = eligible.get(self.choices[-1].decision.strategy) if self.choices else None
        if present is not None and best.rate <= present.rate * (1 + self.options.loyalty):
            best = present
        return alone if "device_only" in eligible and best.rate <= alone.rate * (1 + margin) else best

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

    def _reason(
        self, chosen: Candidate, goal: Candidate | None, candidates: Mapping[Strategy, Candidate], *, starving: bool
    ) -> str:
        alone = candidates["device_only"].rate
        if starving:
            return f"a host request has rested for {self.options.patience} tokens' worth of iterations, so they ride"
        if chosen.strategy != "device_only":
            gain = f"{chosen.rate / alone:.2f} times device_only's rate" if alone else "nothing is on the device"
            return f"predicted best, {gain}"
        late = [name for name, each in candidates.items() if not each.keeps(self._limits.token_s)]
        if late:
            return f"within {1e3 * self._limits.token_s:.0f} ms a token device_only is best; {', '.join(late)} break it"
        if goal is not None and goal.strategy != "device_only":
            return f"{goal.strategy} will pay once requests are on the host"
        if goal is None:
            return "all requests fit on the device"
        return f"nothing gains more than {100 * self.options.margin:.0f} % over device_only"


def _step(count: float) -> int:
    return int(8 * math.log2(1 + count))


def _few(rows: int) -> int:
    return rows if rows <= 16 else 16 + int(16 * math.log2(rows))


def _apart(before: Terms, now: Terms) -> bool:
    return any(abs(a - b) > 0.01 * b for a, b in zip(before, now, strict=True))
