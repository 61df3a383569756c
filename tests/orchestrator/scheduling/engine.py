"""A model that computes nothing: it does what plans say, draws what comes of it and keeps the time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from orchestrator.model.rows_behind import CONTEXT_ROWS
from orchestrator.scheduler import Scheduler
from orchestrator.scheduling.job import SequenceRequest
from orchestrator.scheduling.kv_budget import KvBudget
from orchestrator.scheduling.limits import Limits
from orchestrator.scheduling.native import MeasuredCosts
from orchestrator.scheduling.step_plan import Advance, Ended, StepOutcome, StepPlan
from placement.kv_size import KvForm, SequenceSize
from placement.model_shape import AttentionShape
from placement.pass_costs import PassCosts

COSTS = PassCosts((1, 4, 8, 32, 64), (0.1, 0.2, 0.3, 0.6, 0.9), ((0.004, 0.0001),) * 3)
SEQUENCE = SequenceSize([AttentionShape(2, 1, 16, window, False) for window in (0, 0, 100)], KvForm.bfloat16)


def kv_budget(positions: int, pass_rows: int = 64) -> KvBudget:
    """Room for one sequence of so many positions."""
    return KvBudget(((SEQUENCE, SEQUENCE.num_bytes_in_any_passes(positions, pass_rows)),), pass_rows)


def scheduler_of(limits: Limits, kv: KvBudget, most_drafts: int = 3, costs: PassCosts = COSTS) -> Scheduler:
    return Scheduler(limits, kv, MeasuredCosts(costs), most_drafts)


@dataclass(slots=True)
class Sequence:
    """What a real one holds.

    Attributes:
        touched: positions of which it holds pages.
        rows: kept for drafts.
        rows_from: position of the first of them.
    """

    client: str
    prompt: int
    max_tokens: int
    generated: int = 0
    computed: int = 0
    touched: int = 0
    keeps_rows: bool = True
    rows: int = 0
    rows_from: int = 0

    @property
    def may_draft(self) -> bool:
        return self.keeps_rows and (not self.rows_from or self.rows >= CONTEXT_ROWS)

    def keep_rows(self, *, keeps: bool) -> None:
        if keeps is not self.keeps_rows:
            self.keeps_rows, self.rows, self.rows_from = keeps, 0, self.computed

    def advance(self, number: int, rows: int, **what: Any) -> Advance:
        """It is told of the rows that were kept before."""
        may_draft = self.may_draft
        self.computed += rows
        self.rows += rows * self.keeps_rows
        return Advance(number, held=self.computed, may_draft=may_draft, **what)

    @property
    def to_prefill(self) -> int:
        return self.prompt + self.generated - (self.generated > 0) - self.computed


@dataclass(slots=True)
class Engine:
    """Runs a scheduler's plans on a virtual clock, and holds it to what no plan may do."""

    scheduler: Scheduler
    limits: Limits
    kv: KvBudget
    luck: Random
    stop_chance: float = 0.0
    accept_chance: float = 0.5
    truth: PassCosts = COSTS
    now_s: float = 0.0
    sequences: dict[int, Sequence] = field(default_factory=dict)
    ended: dict[int, Sequence] = field(default_factory=dict)
    served: dict[str, int] = field(default_factory=dict)
    waits_s: list[float] = field(default_factory=list)
    """What prompts added to each pass in which somebody was decoded."""
    pauses: int = 0

    def submit(self, number: int, client: str, prompt: int, max_tokens: int | None = None) -> None:
        self.submit_all([SequenceRequest(number, client, prompt, max_tokens)])

    def submit_all(self, requests: list[SequenceRequest]) -> None:
        granted = self.scheduler.submit(requests, self.now_s)
        for request, most in zip(requests, granted, strict=True):
            assert request.max_tokens is None or most <= request.max_tokens
            self.sequences[request.sequence] = Sequence(request.client, request.prompt_tokens, most)
            self.served.setdefault(request.client, 0)

    def cancel(self, number: int) -> None:
        assert self.scheduler.cancel(number) == (self.sequences.pop(number, None) is not None)

    def step(self, between: Callable[[], None] = lambda: None) -> StepPlan:
        """Plan a pass and run it; `between` happens while it is under way."""
        decoded_before = {n for n, one in self.sequences.items() if one.computed and not one.to_prefill}
        plan = self.scheduler.plan_step(self.now_s)
        for dropped in plan.dropped:
            self.ended[dropped.sequence] = self.sequences.pop(dropped.sequence)
        for number in plan.pause:
            self.pauses += 1
            one = self.sequences[number]
            one.computed = one.touched = one.rows = one.rows_from = 0
        if not plan.rows:
            return plan
        self._check(plan, decoded_before - set(plan.pause))
        for number in plan.sequences:
            self.sequences[number].keep_rows(keeps=plan.keeps_rows)
        parts = {part.sequence: part.drafts for part in plan.decode}
        between()
        outcome = StepOutcome(
            tuple(self._decode(number, drafts) for number, drafts in parts.items())
            + tuple(self._prefill(chunk.sequence, chunk.tokens) for chunk in plan.prefill),
            self.truth.drafting_s(max(parts.values(), default=0), 2 * len(parts)),
            2 * len(parts),
            plan.prefill_rows,
        )
        took_s = self.truth.trunk_s(plan.rows) + outcome.drafting_s
        if parts:
            decode_rows = sum(1 + drafts for drafts in parts.values())
            self.waits_s.append(self.truth.trunk_s(plan.rows) - self.truth.trunk_s(decode_rows))
        self.now_s += took_s
        self.scheduler.finished_step(plan, outcome, took_s)
        for number in [n for n, one in self.sequences.items() if outcome_ended(outcome, n)]:
            self.ended[number] = self.sequences.pop(number)
        return plan

    def run(self, most_steps: int = 20_000) -> int:
        """Until nothing is left; returns the steps."""
        for steps in range(most_steps):
            if not self.sequences:
                return steps
            assert self.step().rows > 0
        raise AssertionError(f"{len(self.sequences)} sequences have not ended after {most_steps} steps")

    def _check(self, plan: StepPlan, decoded: set[int]) -> None:
        assert plan.rows <= self.limits.pass_rows
        assert len(plan.sequences) == len(set(plan.sequences)) <= self.limits.sequences
        # Nobody who is decoded misses a step.
        assert decoded <= {part.sequence for part in plan.decode}
        for part in plan.decode:
            one = self.sequences[part.sequence]
            assert not one.to_prefill
            assert part.drafts < one.max_tokens - one.generated
            assert not part.drafts or (plan.keeps_rows and one.may_draft)
            one.touched = max(one.touched, one.computed + 1 + part.drafts)
        for chunk in plan.prefill:
            one = self.sequences[chunk.sequence]
            assert 0 < chunk.tokens <= one.to_prefill
            one.touched = max(one.touched, one.computed + chunk.tokens)
        assert self.kv.fits(one.touched for one in self.sequences.values())

    def _decode(self, number: int, drafts: int) -> Advance:
        holds = [self.luck.random() < self.accept_chance for _ in range(drafts)]
        accepted = [*holds, False].index(False)
        one = self.sequences.get(number)
        if one is None:
            return Advance(number, (7,) * (1 + accepted), drafts, accepted)
        one.generated += 1 + accepted
        self.served[one.client] += 1 + accepted
        what = {"tokens": (7,) * (1 + accepted), "drafted": drafts, "accepted": accepted}
        return one.advance(number, 1 + accepted, ended=self._end(one), **what)

    def _prefill(self, number: int, tokens: int) -> Advance:
        one = self.sequences.get(number)
        if one is None:
            return Advance(number)
        if one.generated or one.to_prefill > tokens:
            return one.advance(number, tokens)
        one.generated = 1
        self.served[one.client] += one.prompt + 1
        return one.advance(number, tokens, tokens=(7,), ended=self._end(one))

    def _end(self, one: Sequence) -> Ended | None:
        if one.generated == one.max_tokens:
            return "length"
        return "stop" if self.luck.random() < self.stop_chance else None


def outcome_ended(outcome: StepOutcome, number: int) -> bool:
    """Whether a step ended a sequence."""
    advance = outcome.by_sequence.get(number)
    return advance is not None and advance.ended is not None
