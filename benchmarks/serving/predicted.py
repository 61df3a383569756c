"""The server's own scheduler on a virtual clock, with passes that cost what they were measured to cost.

It answers whether the costs that a server learns say how it behaves under another load: how many tokens a
second, and how long to the first one. Nothing of tensors, threads and sockets is in it.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, log2
from statistics import fmean, median

import numpy as np

from benchmarks.serving.asks import Asks
from benchmarks.serving.load import Load, Window
from benchmarks.serving.recording import Step
from orchestrator.scheduler import Scheduler
from orchestrator.scheduling.job import SequenceRequest
from orchestrator.scheduling.kv_budget import KvBudget
from orchestrator.scheduling.limits import Limits
from orchestrator.scheduling.measured_costs import MeasuredCosts
from orchestrator.scheduling.step_plan import Advance, StepOutcome, StepPlan
from orchestrator.serving.answer import Refused
from placement.pass_costs import PassCosts

_LONGEST_WAIT_S = 5.0
_PLAYED_S = 60.0
"""Of a load, at least: it costs little, and its asks are drawn by lot."""
ASKS_A_RUN = 10_000
"""More than a run sends: each has numbers of its own."""
_CLIENT = "everybody"


@dataclass(frozen=True, slots=True)
class Run:
    """One number of users on a server, and the server's steps meanwhile, in order."""

    load: Load
    steps: Sequence[Step]


@dataclass(frozen=True, slots=True)
class Outside:
    """Seconds of a request that its server's scheduler does not see.

    Attributes:
        before_s: from sending it until the scheduler has it, with the way back of its first token.
        after_s: from its last step until its user sends the next one.
    """

    before_s: float
    after_s: float

    @classmethod
    def of(cls, run: Run) -> Outside | None:
        """What is left of the clients' times without the scheduler's; None where nothing was answered."""
        answered = [answer for answer in run.load.answers if answer.outcome == "answered"]
        stayed = [value for step in run.steps for value in step.stayed_s]
        waited = [value for step in run.steps for value in step.first_s]
        if not answered or not stayed or not waited:
            return None
        before_s = median(answer.first_s for answer in answered) - median(waited)
        whole_s = fmean(answer.ended_s - answer.begun_s for answer in answered) - fmean(stayed)
        return cls(max(0.0, before_s), max(0.0, whole_s - before_s))


@dataclass(frozen=True, slots=True)
class Learned:
    """What a server's steps say.

    Attributes:
        costs: the mean of what passes took by their rows. The server itself forgets all but the newest of
            each size, which serves its choices and is no mean of a run.
        between_s: of a step, beside what it is said to take: answers are told, and messages read. Once, and
            for each sequence that it decodes.
        acceptance: of drafts by position, each given those before it.
        outside: by users, ascending.
    """

    costs: PassCosts
    between_s: tuple[float, float]
    acceptance: tuple[float, ...]
    outside: Mapping[int, Outside]

    @classmethod
    def of(cls, runs: Sequence[Run], drafts: int) -> Learned:
        """From several runs; `drafts`: of a sequence in a step, at most.

        Raises:
            ValueError: there is no step.
        """
        steps = [step for run in runs for step in run.steps]
        costs = PassCosts(*_passes(steps), _drafting(steps, drafts))
        outside = {run.load.users: found for run in runs if (found := Outside.of(run)) is not None}
        return cls(costs, _between(runs), _acceptance(steps, drafts), dict(sorted(outside.items())))

    def outside_s(self, users: int) -> Outside:
        """A straight line between the numbers of users that were seen, and no further."""
        if not self.outside:
            return Outside(0.0, 0.0)
        seen = list(self.outside)
        return Outside(
            *(
                float(np.interp(users, seen, [getattr(self.outside[each], name) for each in seen]))
                for name in ("before_s", "after_s")
            )
        )


def _between(runs: Sequence[Run]) -> tuple[float, float]:
    """Seconds between two steps, and for each sequence on top: least squares."""
    found = list[tuple[int, float]]()
    for run in runs:
        for sooner, later in itertools.pairwise(run.steps):
            # A server without work waits for some.
            if sooner.left:
                pause_s = later.ended_s - later.took_s - sooner.ended_s
                found.append((sooner.decoded, max(0.0, pause_s)))
    if not found:
        return 0.0, 0.0
    decoded, pauses = np.array(found).T
    if len(np.unique(decoded)) < 2:
        return float(pauses.mean()), 0.0
    solved = np.linalg.lstsq(np.stack([np.ones(len(decoded)), decoded], axis=1), pauses, rcond=None)[0]
    return float(solved[0]), float(solved[1])


def _passes(steps: Sequence[Step]) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Mean rows and seconds of passes of about as many rows; the least of them stands for one row too."""
    alike: dict[int, list[Step]] = {}
    for step in steps:
        alike.setdefault(round(2 * log2(step.rows)), []).append(step)
    found = {}
    for _, group in sorted(alike.items()):
        rows = round(fmean(step.rows for step in group))
        found[rows] = fmean(step.took_s - step.drafting_s for step in group)
    if not found:
        raise ValueError("no step was recorded")
    found = {1: next(iter(found.values()))} | found
    return tuple(found), tuple(found.values())


def _drafting(steps: Sequence[Step], drafts: int) -> tuple[tuple[float, float], ...]:
    """Each MTP layer's seconds a pass and for each row, taken for alike: least squares."""
    drafting = [step for step in steps if max(step.drafted, default=0) and not step.prompt_rows]
    if not drafting:
        return ((0.0, 0.0),) * drafts
    depth = np.array([max(step.drafted) for step in drafting], float)
    rows = np.array([step.drafting_rows for step in drafting], float)
    seconds = np.array([step.drafting_s for step in drafting])
    solved = np.linalg.lstsq(np.stack([depth, depth * rows], axis=1), seconds, rcond=None)[0]
    once_s, row_s = (max(0.0, float(value)) for value in solved)
    return ((once_s, row_s),) * drafts


def _acceptance(steps: Sequence[Step], drafts: int) -> tuple[float, ...]:
    held, tried = [0] * drafts, [0] * drafts
    for step in steps:
        for drafted, accepted in zip(step.drafted, step.accepted, strict=True):
            for place in range(min(drafted, accepted + 1)):
                tried[place] += 1
                held[place] += place < accepted
    return tuple(h / t if t else 0.0 for h, t in zip(held, tried, strict=True))


@dataclass(frozen=True, slots=True)
class Prediction:
    """Of one load, within its window."""

    users: int
    tokens_per_s: float
    first_p50_s: float


@dataclass(slots=True)
class _Request:
    sent_s: float
    prompt: int
    wanted: int
    got: int = 0
    held: int = 0
    first_s: float | None = None


def predict(
    learned: Learned,
    asks: Asks,
    users: int,
    *,
    warm_up_s: float,
    seconds: float,
    first: int,
    limits: Limits,
    kv: KvBudget,
) -> Prediction:
    """Play the load that `run_load` drives with the same arguments, several times with asks of their own.

    A run of few seconds may end before a long queue is as long as it gets, so each play is as long as a run.
    """
    plays = ceil(_PLAYED_S / seconds)
    tokens, firsts = 0, list[float]()
    for play in range(plays):
        window = Window(warm_up_s, warm_up_s + seconds)
        said, waited = _play(learned, asks, users, window, first + play * ASKS_A_RUN, limits, kv)
        tokens += said
        firsts += waited
    rate = tokens / (plays * seconds)
    return Prediction(users, rate, median(firsts) if firsts else float("nan"))


def _play(
    learned: Learned,
    asks: Asks,
    users: int,
    window: Window,
    first: int,
    limits: Limits,
    kv: KvBudget,
) -> tuple[int, list[float]]:
    """Tokens within the window, and seconds to the first ones that came in it."""
    scheduler = Scheduler(limits, kv, MeasuredCosts(learned.costs), len(learned.acceptance))
    random = np.random.default_rng([asks.seed, first])
    outside = learned.outside_s(users)
    now_s, tokens = 0.0, 0
    firsts: list[float] = []
    live: dict[int, _Request] = {}
    numbers = itertools.count(first)
    arrivals = [(outside.before_s, user) for user in range(users)]
    while now_s < window.stop_s:
        while arrivals and arrivals[0][0] <= now_s:
            at_s, user = heapq.heappop(arrivals)
            number = next(numbers)
            ask = asks.ask(number)
            try:
                most = scheduler.submit(
                    SequenceRequest(number, _CLIENT, len(ask.prompt), ask.max_tokens), now_s
                )
            except Refused as refused:
                wait_s = min(refused.retry_after_s or 1.0, _LONGEST_WAIT_S)
                heapq.heappush(arrivals, (now_s + wait_s, user))
                continue
            live[number] = _Request(at_s - outside.before_s, len(ask.prompt), most)
        plan = scheduler.plan_step(now_s)
        if not plan.rows:
            if not arrivals:
                break
            now_s = max(now_s, arrivals[0][0])
            continue
        for number in plan.pause:
            live[number].held = 0
        outcome = _outcome(plan, live, learned, random)
        rows = len(plan.decode) + sum(advance.drafted for advance in outcome.advances) + plan.prefill_rows
        took_s = learned.costs.trunk_s(rows) + outcome.drafting_s
        ended_s = now_s + took_s
        now_s = ended_s + learned.between_s[0] + learned.between_s[1] * len(plan.decode)
        scheduler.finished_step(plan, outcome, took_s)
        for advance in outcome.advances:
            request = live[advance.sequence]
            request.got += len(advance.tokens)
            tokens += len(advance.tokens) * window.has(ended_s)
            if advance.tokens and request.first_s is None:
                request.first_s = ended_s
                if window.has(ended_s):
                    firsts.append(ended_s - request.sent_s)
            if advance.ended:
                del live[advance.sequence]
                heapq.heappush(arrivals, (ended_s + outside.after_s + outside.before_s, len(arrivals)))
    return tokens, firsts


def _outcome(
    plan: StepPlan, live: dict[int, _Request], learned: Learned, random: np.random.Generator
) -> StepOutcome:
    """What a step would do: drafts hold by lot, each with the measured chance."""
    advances = []
    depth = 0
    for part in plan.decode:
        request = live[part.sequence]
        left = request.wanted - request.got
        drafted = min(part.drafts, left - 1)
        depth = max(depth, drafted)
        accepted = 0
        while accepted < drafted and random.random() < learned.acceptance[accepted]:
            accepted += 1
        request.held += 1 + accepted
        ended = left <= 1 + accepted
        advances.append(_advance(part.sequence, 1 + accepted, drafted, accepted, request.held, ended))
    for chunk in plan.prefill:
        request = live[chunk.sequence]
        request.held += chunk.tokens
        is_first = not request.got and request.held >= request.prompt
        ended = is_first and request.wanted == 1
        advances.append(_advance(chunk.sequence, int(is_first), 0, 0, request.held, ended))
    drafting_s = learned.costs.drafting_s(depth, len(plan.decode) if depth else 0)
    return StepOutcome(tuple(advances), drafting_s, len(plan.decode) if depth else 0)


def _advance(sequence: int, tokens: int, drafted: int, accepted: int, held: int, ended: bool) -> Advance:
    return Advance(sequence, (0,) * tokens, drafted, accepted, "length" if ended else None, held)
