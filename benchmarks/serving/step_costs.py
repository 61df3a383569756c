"""What a server's steps cost by what they compute, learned from recorded ones.

Rows alone do not say it. A decoded sequence costs attention of its own. Its answer is told by threads that
share the processor with what comes next: MTP layers if they draft, else the pass. So do requests that come;
in this benchmark the clients do too.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.optimize import nnls

from benchmarks.serving.recording import Step

Counts = tuple[float, ...]
"""How much of each kind of work is done."""


@dataclass(frozen=True, slots=True)
class Experts:
    """Of a MoE layer: how many there are, and how many of them a row chooses."""

    number: int
    top_k: int

    def touched(self, rows: float) -> float:
        """Experts that so many rows touch if they choose by lot, as a multiple of those that one row does."""
        missed = float((1 - self.top_k / self.number) ** rows)
        return self.number / self.top_k * (1 - missed)


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of a part of a step.

    Attributes:
        each_s: of one of each kind of work; () where nothing was seen, or it took no time.
        ratios: of measured to expected seconds, 1 on average.
    """

    each_s: tuple[float, ...]
    ratios: tuple[float, ...] = (1.0,)

    @classmethod
    def fitted(cls, counts: Sequence[Counts], seconds: Sequence[float]) -> Cost:
        """Least squares without negative costs. All together are expected to take as long as they did."""
        if not counts:
            return cls(())
        done, measured = np.array(counts, float), np.array(seconds)
        each_s, _ = nnls(done, measured)
        expected = done @ each_s
        if not expected.any():
            return cls(())
        ratios = measured[expected > 0] / expected[expected > 0]
        return cls(tuple(each_s.tolist()), tuple((ratios / ratios.mean()).tolist()))

    def expected_s(self, counts: Counts) -> float:
        """The mean."""
        return sum(count * each_s for count, each_s in zip(counts, self.each_s, strict=False))

    def drawn_s(self, counts: Counts, random: np.random.Generator) -> float:
        """As far from the mean as one of those that were measured."""
        return self.expected_s(counts) * self.ratios[random.integers(len(self.ratios))]


class Parts(NamedTuple):
    """Seconds of a step's pass, of its MTP layers, and from its end until the next one if there is work."""

    trunk_s: float
    drafting_s: float
    after_s: float


@dataclass(frozen=True, slots=True)
class StepCosts:
    """What steps take.

    Attributes:
        trunk: once, for touched experts, for each row, decoded sequence, one of those where nobody drafts,
            prompt, and request that comes.
        drafting: for each MTP layer that drafts, for each draft, for each row that waited for such a layer,
            for each decoded sequence.
        after: once, for each decoded sequence, request that ended, prompt, and request that came.
    """

    experts: Experts
    trunk: Cost
    drafting: Cost
    after: Cost

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
        passes_s = [step.took_s - step.drafting_s for step in steps]
        return cls(
            experts,
            Cost.fitted([_in_trunk(step, experts) for step in steps], passes_s),
            Cost.fitted([_in_drafting(step) for step in drafting], [step.drafting_s for step in drafting]),
            Cost.fitted([_after(sooner) for sooner, _ in pairs], pauses),
        )

    def expected(self, step: Step) -> Parts:
        """The means of such steps."""
        return Parts(
            self.trunk.expected_s(_in_trunk(step, self.experts)),
            self.drafting.expected_s(_in_drafting(step)),
            self.after.expected_s(_after(step)),
        )

    def drawn(self, step: Step, random: np.random.Generator) -> Parts:
        """One such step."""
        return Parts(
            self.trunk.drawn_s(_in_trunk(step, self.experts), random),
            self.drafting.drawn_s(_in_drafting(step), random),
            self.after.drawn_s(_after(step), random),
        )


def _in_trunk(step: Step, experts: Experts) -> Counts:
    told = 0 if step.depth else step.decoded
    return 1, experts.touched(step.rows), step.rows, step.decoded, told, step.prompts, step.asked


def _in_drafting(step: Step) -> Counts:
    told = step.decoded if step.depth else 0
    return step.depth, sum(step.drafted), step.depth * step.drafting_rows, told


def _after(step: Step) -> Counts:
    return 1, step.decoded, step.ended, step.prompts, step.asked
