"""The server's own scheduler on a virtual clock, with steps that take what such steps were measured to take.

It answers whether the costs that a server shows say how it behaves under another load: how many tokens a
second, and how long to the first one. Nothing of tensors, threads and sockets is in it.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil
from statistics import median

import numpy as np

from benchmarks.serving.asks import Ask, Asks
from benchmarks.serving.learned import Learned, OnTheWay
from benchmarks.serving.load import LONGEST_WAIT_S, Window
from benchmarks.serving.recording import Step
from orchestrator.model.rows_behind import CONTEXT_ROWS
from orchestrator.scheduler import Scheduler
from orchestrator.scheduling.job import SequenceRequest
from orchestrator.scheduling.kv_budget import KvBudget
from orchestrator.scheduling.limits import Limits
from orchestrator.scheduling.native import MeasuredCosts
from orchestrator.scheduling.step_plan import Advance, Ended, StepOutcome, StepPlan
from orchestrator.serving.answer import Refused
from placement.pass_costs import PassCosts

_PLAYED_S = 120.0
"""Of a load, at least: it costs little, and what steps take and whether drafts hold is drawn by lot."""
_CLIENT = "everybody"


@dataclass(frozen=True, slots=True)
class Setup:
    """Of a server.

    Attributes:
        costs: what it takes passes to cost before it has run one.
        most_behind: rows that may wait for each MTP layer; () for no drafts.
    """

    limits: Limits
    kv: KvBudget
    costs: PassCosts
    most_behind: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Rounds:
    """Of one load: `run_load` was called with each of `firsts`, and with these times."""

    firsts: Sequence[int]
    warm_up_s: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """Of one load, within its window."""

    users: int
    tokens_per_s: float
    first_p50_s: float


def predict(learned: Learned, asks: Asks, users: int, rounds: Rounds, setup: Setup) -> Prediction:
    """Play the rounds of a load with the asks that they had, several times with lots of their own.

    The server has played a round before: a real one knows drafts and costs from the loads before.
    """
    server = _Server(learned, setup, learned.way(users, setup.limits.sequences), asks.seed)
    times = ceil(_PLAYED_S / (rounds.seconds * len(rounds.firsts)))
    server.play(asks, users, rounds.firsts[-1], rounds.warm_up_s, rounds.seconds)
    server.tokens = 0
    server.firsts_s.clear()
    for first in [*rounds.firsts] * times:
        server.play(asks, users, first, rounds.warm_up_s, rounds.seconds)
    rate = server.tokens / (times * len(rounds.firsts) * rounds.seconds)
    return Prediction(users, rate, median(server.firsts_s) if server.firsts_s else float("nan"))


@dataclass(slots=True)
class _Request:
    """One that has not ended.

    Attributes:
        chances: of its drafts, by position.
        slots: of each MTP layer, rows of the trunk that it has taken in, or that nobody kept for it.
    """

    sent_s: float
    prompt: int
    wanted: int
    chances: Sequence[float]
    slots: list[int]
    keeps_rows: bool
    rows_from: int = 0
    got: int = 0
    held: int = 0

    def behind(self, most: Sequence[int]) -> tuple[int, ...]:
        """Rows that wait for each layer, `most` of them at most."""
        return tuple(min(self.held - slots, limit) for slots, limit in zip(self.slots, most, strict=True))

    @property
    def may_draft(self) -> bool:
        """Whether it has the rows that drafts take."""
        return self.keeps_rows and (not self.rows_from or self.held - self.rows_from >= CONTEXT_ROWS)

    def keep_rows(self, keeps: bool) -> None:
        """As `SequenceState.keep_rows`."""
        if keeps is not self.keeps_rows:
            self.keeps_rows = keeps
            self.rows_from = self.held
            self.slots = [self.held] * len(self.slots)

    def drafted(self, depth: int) -> None:
        """Layers have taken in what waited, but for rows whose next tokens are drafts."""
        for layer in range(depth):
            self.slots[layer] = max(self.slots[layer], self.held - layer)

    def pause(self) -> None:
        """Give all keys and values back."""
        self.held = self.rows_from = 0
        self.slots = [0] * len(self.slots)


class _Server:
    """A server and its users.

    Attributes:
        tokens: that came in the windows of all rounds.
        firsts_s: to the first tokens that came in them.
    """

    def __init__(self, learned: Learned, setup: Setup, way: OnTheWay, seed: int) -> None:
        self.tokens = 0
        self.firsts_s: list[float] = []
        self._learned = learned
        self._way = way
        self._most_behind = setup.most_behind[: len(learned.acceptance.chances)]
        drafts = len(self._most_behind)
        self._scheduler = Scheduler(setup.limits, setup.kv, MeasuredCosts(setup.costs), drafts)
        self._random = np.random.default_rng(seed)
        self._now_s = 0.0
        self._live: dict[int, _Request] = {}
        self._sequences = itertools.count()

    def play(self, asks: Asks, users: int, first: int, warm_up_s: float, seconds: float) -> None:
        """What `run_load` does with the same arguments."""
        way, numbers = self._way, itertools.count(first)
        window = Window(self._now_s + warm_up_s, self._now_s + warm_up_s + seconds)
        asked = [self._now_s + way.in_s] * users
        while True:
            while asked and asked[0] <= self._now_s:
                again_s = self._take(asks.ask(next(numbers)), heapq.heappop(asked))
                if again_s is not None and again_s < window.stop_s:
                    heapq.heappush(asked, again_s + way.in_s)
            plan = self._scheduler.plan_step(self._now_s)
            for sequence in plan.pause:
                self._live[sequence].pause()
            if plan.rows:
                for again_s in self._step(plan, window, asked):
                    if again_s < window.stop_s:
                        heapq.heappush(asked, again_s + way.in_s)
            elif asked:
                self._now_s = asked[0]
            else:
                return

    def _take(self, ask: Ask, asked_s: float) -> float | None:
        """Take a request; returns when its user asks again if it was refused."""
        number, prompt = next(self._sequences), len(ask.prompt)
        try:
            (most,) = self._scheduler.submit(
                [SequenceRequest(number, _CLIENT, prompt, ask.max_tokens)], self._now_s
            )
        except Refused as refused:
            return self._now_s + min(max(1, ceil(refused.retry_after_s or 0)), LONGEST_WAIT_S)
        slots = [0] * len(self._most_behind)
        chances = self._learned.acceptance.drawn(self._random)
        keeps_rows = self._scheduler.keeps_rows
        self._live[number] = _Request(asked_s - self._way.in_s, prompt, most, chances, slots, keeps_rows)
        return None

    def _step(self, plan: StepPlan, window: Window, asked: Sequence[float]) -> Iterator[float]:
        """Run a step; yields when the users of those that ended with it ask again.

        Args:
            asked: when requests come.
        """
        way, costs = self._way, self._learned.costs
        outcome = self._outcome(plan)
        step = Step.of(plan, outcome, 0.0, 0.0, 0, 0)
        trunk_s, drafting_s, _ = costs.expected(step)
        meanwhile = sum(asked_s <= self._now_s + trunk_s + drafting_s for asked_s in asked)
        trunk_s, drafting_s, after_s = costs.drawn(replace(step, asked=meanwhile), self._random)
        took_s = trunk_s + drafting_s
        ended_s = self._now_s + took_s
        self._now_s = ended_s + after_s
        self._scheduler.finished_step(plan, replace(outcome, drafting_s=drafting_s), took_s)
        read_s = ended_s + way.first_s
        for advance in outcome.advances:
            request, said = self._live[advance.sequence], len(advance.tokens)
            if window.has(read_s):
                self.tokens += said
                if said and not request.got:
                    self.firsts_s.append(read_s - request.sent_s)
            request.got += said
            if advance.ended:
                del self._live[advance.sequence]
                yield ended_s + way.last_s

    def _outcome(self, plan: StepPlan) -> StepOutcome:
        """What a step would do: drafts hold by lot, each with the measured chance."""
        advances, waited = [], 0
        for sequence in plan.sequences:
            self._live[sequence].keep_rows(plan.keeps_rows)
        for part in plan.decode:
            request = self._live[part.sequence]
            left = request.wanted - request.got
            drafted = min(part.drafts, left - 1)
            if drafted:
                waited += max(request.behind(self._most_behind)[:drafted])
                request.drafted(drafted)
            accepted = 0
            while accepted < drafted and self._random.random() < request.chances[accepted]:
                accepted += 1
            ended = left <= 1 + accepted
            advances.append(
                self._advance(part.sequence, 1 + accepted, 1 + accepted, ended, drafted, accepted)
            )
        for chunk in plan.prefill:
            request = self._live[chunk.sequence]
            is_first = not request.got and request.held + chunk.tokens >= request.prompt
            ended = is_first and request.wanted == 1
            advances.append(self._advance(chunk.sequence, chunk.tokens, int(is_first), ended))
        return StepOutcome(tuple(advances), 0.0, waited, plan.prefill_rows)

    def _advance(
        self, sequence: int, rows: int, said: int, ended: bool, drafted: int = 0, accepted: int = 0
    ) -> Advance:
        request = self._live[sequence]
        # It is told of the rows before the step.
        may_draft = request.may_draft
        request.held += rows
        layers = tuple(zip(request.slots, self._most_behind, strict=True))
        reason: Ended | None = "length" if ended else None
        return Advance(
            sequence,
            (0,) * said,
            drafted,
            accepted,
            reason,
            request.held,
            layers=layers,
            may_draft=may_draft,
        )
