"""What a server's steps cost by what they compute, learned from recorded ones.

Rows alone do not say it. A decoded sequence costs attention of its own. Its answer is told by threads that
share the processor with the next pass; in this benchmark its client does too.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from benchmarks.serving.recording import Step
from placement.pass_costs import PassCosts

_CURVE_ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128, 256)

Counts = tuple[float, ...]
"""How much of each kind of work is done."""
Seconds = tuple[float, ...]
"""What one of each kind costs; () where nothing of it was seen."""


@dataclass(frozen=True, slots=True)
class Experts:
    """Of a MoE layer: how many there are, and how many of them a row chooses."""

    number: int
    top_k: int

    def touched(self, rows: float) -> float:
        """By rows that choose by lot, in experts of one row."""
        missed = float((1 - self.top_k / self.number) ** rows)
        return self.number / self.top_k * (1 - missed)


@dataclass(frozen=True, slots=True)
class StepCosts:
    """Expected seconds of the parts of a step.

    Attributes:
        pass_s: once, for touched experts, for each row, for each decoded sequence, and for each prompt.
        draft_s: for each MTP layer that drafts, for each draft, for each row that waited for such a layer.
        after_s: once, for each decoded sequence, for each request that ended, and for each prompt.
    """

    experts: Experts
    pass_s: Seconds
    draft_s: Seconds
    after_s: Seconds

    @classmethod
    def of(cls, runs: Sequence[Sequence[Step]], experts: Experts) -> StepCosts:
        """From the steps of several runs, each in order.

        Raises:
            ValueError: there is no step.
        """
        steps = [step for run in runs for step in run]
        if not steps:
            raise ValueError("no step was recorded")
        drafting = [step for step in steps if step.depth]
        # A server without work waits for some.
        pairs = [pair for run in runs for pair in itertools.pairwise(run) if pair[0].left]
        pauses = [max(0.0, later.ended_s - later.took_s - sooner.ended_s) for sooner, later in pairs]
        return cls(
            experts,
            _fitted([_in_pass(step, experts) for step in steps], [of.took_s - of.drafting_s for of in steps]),
            _fitted([_in_drafting(step) for step in drafting], [step.drafting_s for step in drafting]),
            _fitted([_after(sooner) for sooner, _ in pairs], pauses),
        )

    def trunk_s(self, step: Step) -> float:
        """Of its pass, the choice of tokens included."""
        return _sum(_in_pass(step, self.experts), self.pass_s)

    def drafting_s(self, step: Step) -> float:
        """Of its MTP layers."""
        return _sum(_in_drafting(step), self.draft_s)

    def until_next_s(self, step: Step) -> float:
        """From its end until the next one begins, where there is more to do."""
        return _sum(_after(step), self.after_s)

    def curve(self, sequences: int, drafts: int) -> PassCosts:
        """Passes by rows: of at most so many decoded sequences, and of one prompt beyond."""
        seconds = []
        for rows in _CURVE_ROWS:
            decoded = min(rows, sequences)
            seconds.append(_sum(_work(rows, decoded, int(rows > decoded), self.experts), self.pass_s))
        once_s, draft_s, row_s = self.draft_s or (0.0, 0.0, 0.0)
        return PassCosts(_CURVE_ROWS, tuple(seconds), ((once_s, draft_s + row_s),) * drafts)


def _in_pass(step: Step, experts: Experts) -> Counts:
    return _work(step.rows, step.decoded, step.prompts, experts)


def _work(rows: int, decoded: int, prompts: int, experts: Experts) -> Counts:
    return 1, experts.touched(rows), rows, decoded, prompts


def _in_drafting(step: Step) -> Counts:
    return step.depth, sum(step.drafted), step.depth * step.drafting_rows


def _after(step: Step) -> Counts:
    return 1, step.decoded, step.ended, step.prompts


def _sum(counts: Counts, seconds: Seconds) -> float:
    return sum(count * each_s for count, each_s in zip(counts, seconds, strict=False))


def _fitted(counts: Sequence[Counts], seconds: Sequence[float]) -> Seconds:
    """Least squares without negative costs. All steps together are expected to take as long as they did."""
    if not counts:
        return ()
    found, _ = nnls(np.array(counts, float), np.array(seconds))
    return tuple(found.tolist())
