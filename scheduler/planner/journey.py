"""A course in virtual time up to the last request's end: the rules of `tiers`, over groups of requests."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from ..roster import MOST, Group, join, kv_tokens, produce
from ..strategies import DEVICE_ONLY, named
from .pacing import Pacing

QUEUE = 4
"""Times as many waiting requests as there are places, beyond which their waves are taken to be alike."""


class Course(NamedTuple):
    """What could be done from now on.

    Attributes:
        strategy: how host requests ride.
        most: requests that may be on the host.
        riding: of these under way at once, the others take turns.
        cohorts: of async_overlap that are under way at once; L + 1 if 0.
        rests: whether host rows rest in iterations in which they do not make up for the time that they take, as they
            may do beside prompts alone.
    """

    strategy: str
    most: int = 0
    riding: int = 0
    cohorts: int = 0
    rests: bool = False


ALONE = Course(DEVICE_ONLY.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What bounds the requests.

    Attributes:
        device_tokens, host_tokens: KV that either side holds.
        page_size: tokens in a page.
        device_requests: requests on the device at once.
        prompt_tokens: of an iteration at most.
    """

    device_tokens: int
    host_tokens: int
    page_size: int
    device_requests: int
    prompt_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Where courses begin.

    Attributes:
        pacing: what iterations take.
        num_layers: L.
        moving_s: seconds for moving a token's KV between the sides.
        room: what bounds the requests.
        device, host, waiting: the requests.
    """

    pacing: Pacing
    num_layers: int
    moving_s: float
    room: Room
    device: list[Group]
    host: list[Group]
    waiting: list[Group]


class _Prompts:
    """What newcomers bring in one phase."""

    __slots__ = ("device", "host", "iterations", "pairs", "tokens")

    def __init__(self) -> None:
        self.device: list[Group] = []
        self.host: list[Group] = []
        self.tokens = self.pairs = self.iterations = 0.0


class Journey:
    """One course in virtual time. Groups stand in order of arrival, the youngest last.

    Args:
        start: the requests, what bounds them and what iterations take.
        course: what is done.

    Attributes:
        now: seconds since the start; infinity once that is later than somebody wants to know.
        rows, free: requests on the device, and tokens that fit there beside them and their next tokens.
        host_rows, host_free: the same for the host.
        moved: tokens that move between the sides in this phase.
    """

    def __init__(self, start: Start, course: Course) -> None:
        self.start = start
        self.course = course
        self.room = start.room
        self.device = [group.copy() for group in start.device]
        self.host = [group.copy() for group in start.host]
        self.waiting = [group.copy() for group in start.waiting]
        self.now = 0.0
        self.rows = self.host_rows = 0
        self.free = self.host_free = self.moved = 0.0
        self.skipped = False

    def go_on(self, phases: int, within: float) -> int:
        """Follow the course for so many phases at most, or up to its end; return how many are left."""
        while phases and not self.is_over:
            self._count()
            if self.host_free < self.host_rows:
                self._shrink_host()
            if self.free < 0:
                self._shrink_device()
            prompts = self._admit() if self.waiting else _Prompts()
            if not self.waiting and not prompts.tokens:
                self._fetch_back()
            self.now += self._pass(prompts)
            if self.now > within:
                self.now = math.inf
            phases -= 1
        return phases

    @property
    def is_over(self) -> bool:
        """Whether the last request has ended, or does so too late."""
        return self.now == math.inf or not (self.device or self.host or self.waiting)

    def _count(self) -> None:
        page, room = self.room.page_size, self.room
        rows = host_rows = 0
        held = kv = 0.0
        for group in self.device:
            rows += group.count
            held += group.count * -(-group.context // page)
        for group in self.host:
            host_rows += group.count
            kv += group.count * group.context
        self.rows, self.free = rows, room.device_tokens - held * page
        self.host_rows, self.host_free = host_rows, room.host_tokens - kv
        self.moved = 0.0

    def _need(self, group: Group) -> float:
        """Return the tokens of a request's pages."""
        page = self.room.page_size
        return -(-group.context // page) * page

    def _vacancies(self, need: float) -> int:
        """Return how many more requests of that size may go to the host, where each is left a page to grow into."""
        page = self.room.page_size
        fitting = int((self.host_free - page * self.host_rows) // (need + page))
        return max(0, min(self.course.most - self.host_rows, fitting))

    def _shrink_host(self) -> None:
        """Compute the youngest again later, where the host's memory is full; enough of them to go on for a while."""
        while self.host_free < self.host_rows and self.host:
            youngest = self.host[-1]
            ahead = max(self.room.page_size, min(group.left for group in self.host) / 4)
            short = self.host_rows * ahead - self.host_free
            count = min(youngest.count, math.ceil(short / (youngest.context + ahead)))
            self.waiting.insert(0, youngest.take(count))
            if not youngest.count:
                self.host.pop()
            self.host_rows -= count
            self.host_free += count * youngest.context

    def _shrink_device(self) -> None:
        """Let the youngest go to the host, or compute them again later, where the device's memory is full."""
        while self.free < 0 and self.rows > 1:
            youngest = self.device[-1]
            need = self._need(youngest)
            ahead = max(self.room.page_size, min(group.left for group in self.device) / 4)
            count = min(youngest.count, math.ceil((self.rows * ahead - self.free) / (need + ahead)), self.rows - 1)
            vacancies = self._vacancies(need)
            if vacancies:
                count = min(count, vacancies)
                self._to_host(youngest.take(count))
            else:
                self.waiting.insert(0, youngest.take(count))
            if not youngest.count:
                self.device.pop()
            self.rows -= count
            self.free += count * need

    def _to_host(self, group: Group) -> None:
        self.host_rows += group.count
        self.host_free -= group.count * group.context
        self.moved += group.count * group.context
        join(self.host, group)

    def _admit(self) -> _Prompts:
        """Let the first that wait in, on the device or in place of its youngest, which go to the host."""
        page, room, found = self.room.page_size, self.room, _Prompts()
        while self.waiting and found.iterations < 1:
            first = self.waiting[0]
            need = self._need(first)
            # What an iteration computes must find place on the device before anything can leave it.
            at_once = max(first.context, min(room.prompt_tokens, room.device_tokens // (need + page) * first.context))
            # Not so many that some of them would end before the last begins.
            most = min(first.count, max(1, int(first.left / 2 * at_once / first.context)))
            fitting = int((self.free - page * (self.rows - 1)) // (need + page))
            if not self.rows:
                # Every request fits alone, or it would not have been taken.
                fitting = max(1, fitting)
            staying = max(0, min(most, fitting, room.device_requests - self.rows))
            leaving = 0
            if staying < most and (self.rows or staying):
                leaving = min(most - staying, self._vacancies(need))
            count = staying + leaving
            if not count:
                break
            self._begin(first.take(count), staying, math.ceil(at_once / first.context), found)
            found.iterations += count * first.context / at_once
            found.tokens += count * first.context
            found.pairs += count * first.context * (first.context + 1) / 2
            if first.count:
                break
            del self.waiting[0]
        return found

    def _begin(self, newcomers: Group, staying: int, at_once: int, found: _Prompts) -> None:
        """Place newcomers of which so many find room; the last ones stay, and as many that were there before leave."""
        leaving = newcomers.count - staying
        youngest = self.device[-1] if self.device else None
        self.free -= staying * self._need(newcomers)
        self.rows += staying
        newcomers.context += 1
        newcomers.left -= 1
        if leaving:
            swapped = min(leaving, at_once, youngest.count) if youngest is not None else 0
            if youngest is not None and swapped:
                self._to_host(youngest.take(swapped))
                if not youngest.count:
                    self.device.pop()
                staying += swapped
            if leaving > swapped:
                gone = newcomers.take(leaving - swapped)
                self.host_rows += gone.count
                self.host_free -= gone.count * gone.context
                self.moved += gone.count * gone.context
                found.host.append(gone)
        if staying:
            found.device.append(newcomers)

    def _fetch_back(self) -> None:
        """Let the oldest host requests return, where nobody waits."""
        page, room = self.room.page_size, self.room
        while self.host:
            oldest = self.host[0]
            need = self._need(oldest)
            fitting = int((self.free - page * self.rows) // (need + page))
            count = min(oldest.count, fitting, room.device_requests - self.rows)
            if count <= 0:
                return
            join(self.device, oldest.take(count))
            self.moved += count * oldest.context
            self.rows += count
            self.host_rows -= count
            self.free -= count * need
            if oldest.count:
                return
            del self.host[0]

    def _pass(self, prompts: _Prompts) -> float:
        """Let time pass until something changes, or the prompts are computed; return the seconds."""
        start, course = self.start, self.course
        # Newcomers are there for half of the time on average.
        rows = self.rows - sum(group.count for group in prompts.device) // 2
        host_rows = self.host_rows - sum(group.count for group in prompts.host) // 2
        strategy, riding, pace = self._turn(host_rows, busy=bool(self.rows or prompts.tokens))
        iterations = math.ceil(prompts.iterations)
        steps = iterations or self._steps(pace)
        kv = kv_tokens(self.device) + kv_tokens(prompts.device) / 2 + rows * steps / 2
        length = 0.0
        if host_rows:
            length = (kv_tokens(self.host) + kv_tokens(prompts.host)) / self.host_rows + pace * steps / 2
        prompt = (int(prompts.tokens / iterations), prompts.pairs / iterations) if iterations else (0, 0.0)
        each, busy = self._pace(strategy, rows, kv, (riding, length), prompt)
        if (iterations or course.rests) and pace and rows and named(course.strategy).through:
            alone = start.pacing.seconds(DEVICE_ONLY.name, rows, kv, prompt=prompt)[0]
            if not pays(start.pacing, rows, kv, riding, each - alone):
                each, busy, pace = alone, 0.0, 0.0
        seconds = max(steps * each, steps * busy + self.moved * start.moving_s)
        if not iterations and not self.skipped and self._queue() > QUEUE * max(MOST, self.rows + self.host_rows):
            seconds += self._skip(strategy, riding, pace)
        self._advance(prompts, steps, pace)
        return seconds

    def _pace(
        self, strategy: str, rows: int, kv: float, host: tuple[int, float], prompt: tuple[int, float]
    ) -> tuple[float, float]:
        """Return what an iteration takes, and the host's part, with the best share of rows in the first cohort."""
        cohorts, seconds = self.course.cohorts, self.start.pacing.seconds
        if not prompt[0] or len(named(strategy).shares(prompts=True)) == 1:
            return seconds(strategy, rows, kv, *host, prompt, cohorts=cohorts)
        return min(seconds(strategy, rows, kv, *host, prompt, share) for share in named(strategy).shares(prompts=True))

    def _turn(self, host_rows: int, *, busy: bool) -> tuple[str, int, float]:
        """Return how host rows take part, how many of them, and the tokens that one makes in an iteration."""
        strategy, riding = self.course.strategy, min(host_rows, self.course.riding)
        if not busy:
            # Nothing else is there to do, and nobody waits for the device.
            riding = host_rows
            strategy = named(strategy).without_device((host_rows,), host_rows)[0].name if host_rows else strategy
        if not riding:
            return DEVICE_ONLY.name, 0, 0.0
        tokens = named(strategy).iterations_a_token(1, self.start.num_layers)
        return strategy, riding, riding / host_rows / tokens

    def _steps(self, pace: float) -> float:
        """Return for how many iterations nobody ends or runs out of memory."""
        steps = math.inf
        if self.device:
            steps = min(group.left for group in self.device)
            steps = min(steps, max(1.0, self.free // self.rows + self.room.page_size / 2))
        if pace:
            ends = min(group.left for group in self.host)
            steps = min(steps, min(ends, self.host_free / self.host_rows) / pace)
        return max(1.0, math.ceil(steps))

    def _advance(self, prompts: _Prompts, steps: float, pace: float) -> None:
        if self.rows:
            produce(self.device, steps)
        if pace:
            produce(self.host, steps * pace)
        early = max(0.0, (math.ceil(prompts.iterations) - 1) / 2)
        for group in prompts.device:
            group.context += early
            group.left -= early
            if group.left > 0:
                join(self.device, group)
        for group in prompts.host:
            group.context += early * pace
            group.left -= early * pace
            if group.left > 0:
                join(self.host, group)

    def _queue(self) -> int:
        return sum(group.count for group in self.waiting)

    def _skip(self, strategy: str, riding: int, pace: float) -> float:
        """Take the waves in the middle of a long queue at once; return their seconds.

        A request needs so many iterations with its prompt, and for the tokens that these do not make others without.
        """
        self.skipped = True
        everybody = self._queue()
        count = everybody - QUEUE * max(MOST, self.rows + self.host_rows) // 2
        context = sum(group.count * group.context for group in self.waiting) / everybody
        output = sum(group.count * group.left for group in self.waiting) / everybody
        middle, seconds, room, cohorts = context + output / 2, self.start.pacing.seconds, self.room, self.course.cohorts
        # Half a place is left over on average.
        places = max(1.0, min(self.rows, room.device_tokens / (middle + room.page_size) - 0.5))
        host = min(riding, room.host_tokens / (middle + room.page_size))
        rows, kv, host_rows = math.ceil(places), places * middle, math.ceil(host)
        made = host / named(strategy).iterations_a_token(1, self.start.num_layers)
        prompt = (room.prompt_tokens, room.prompt_tokens * context / 2)
        beside = self._pace(strategy, rows, kv, (host_rows, middle), prompt)[0]
        alone = seconds(DEVICE_ONLY.name, rows, kv, prompt=prompt)[0]
        begun = places + made
        if named(strategy).through and not pays(self.start.pacing, rows, kv, host_rows, beside - alone):
            beside, begun = alone, places
        each = seconds(strategy, rows, kv, host_rows if pace else 0, middle, cohorts=cohorts)[0]
        with_prompt = context / room.prompt_tokens
        without = max(0.0, output - with_prompt * begun) / (places + (made if pace else 0.0))
        before = taken = 0
        for group in self.waiting:
            before += group.count
            taking = min(group.count, round(before * count / everybody) - taken)
            group.count -= taking
            taken += taking
        self.waiting = [group for group in self.waiting if group.count]
        return count * (with_prompt * beside + without * each)


def pays(pacing: Pacing, rows: int, kv_tokens: float, riding: int, longer_s: float) -> bool:
    """Whether host rows that go through all layers make up for the time by which they lengthen an iteration."""
    return riding * pacing.seconds(DEVICE_ONLY.name, rows, kv_tokens)[0] >= rows * longer_s
