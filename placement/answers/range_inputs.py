"""The range of a plan's speed, and what one input alone makes of it: memory, drafts that hold, routing.

An input is changed alone, and the plan's speed computed again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from placement.answers.prediction import Prediction
from placement.answers.prediction_range import LikelySpeed, SpeedRange, range_for, range_of
from placement.given.problem import PlanningDevice, PlanningProblem
from placement.given.stats import RoutingStats
from placement.given.traces import DOMAINS, SyntheticRouter
from placement.hardware.spread import Spreads
from placement.plan import Plan
from placement.replay.simulate import simulate_alone
from placement.replay.steps import Acceptance
from placement.replay.system import System
from placement.routing.planning_text import PlanningText, spread_steps
from placement.routing.routing_profile import smooth
from placement.workload import Workload

# By how much fewer and more drafts hold in other kinds of text, as shifts of log-odds. For MTP layers of
# this family nine kinds were published: 35% (stories) to 64% (questions of fact) where the mean was 47%
# (llama.cpp, pull request 24340), and 86% to 97% where it was about 92% (23274).
TEXT_SHIFTS = (-0.5, 0.7)
# Of as many draws, the next lies between the extremes with a chance of 80%.
_DRAWS = 9
# Each effect is a ratio of means on one text, which few steps tell well.
_STEPS, _FEWEST_STEPS, _DRAWN_TOKENS = 500, 2, 128

Input = Literal["memory", "drafts", "routing"]


@dataclass(frozen=True, slots=True)
class InputEffect:
    """One input, and what it alone may make of a plan's speed: factors of tokens/s, 1 among them.

    `why`: what was changed.
    """

    input: Input
    low: float
    high: float
    why: str

    @property
    def size(self) -> float:
        return self.high / self.low


@dataclass(frozen=True, slots=True)
class PlanRange:
    """A plan's speed with its range, and what one input alone makes of the speed.

    The range comes from the devices' figures, drafts and routing. What memory makes of the speed is not
    added: the range of figures has it, since that is of whole speeds.

    Attributes:
        figures: the range that the devices' figures alone give.
        inputs: memory, drafts where there are any, and routing, the largest effect first.
    """

    speed: LikelySpeed
    figures: SpeedRange
    inputs: tuple[InputEffect, ...]


def plan_range(
    problem: PlanningProblem, plan: Plan, text: PlanningText, prediction: Prediction, spreads: Spreads
) -> PlanRange:
    """The range of a `prediction` for `plan` on `text`, the problem's own (`planning_text`).

    `spreads` are of whole speeds, so memory is counted in them. What drafts and routing add is independent of
    it: sides add up as the square root of squares of their logarithms.

    Raises:
        InputError: the head's node has no device.
    """
    figures = range_for(problem, plan.holder_table, spreads)
    memory = _memory(problem, plan, text, spreads)
    others = [*_drafts(problem, plan, prediction), _routing(problem, plan, text)]
    low = -math.hypot(math.log(figures.low), *(math.log(other.low) for other in others))
    high = math.hypot(math.log(figures.high), *(math.log(other.high) for other in others))
    whole = replace(figures, low=math.exp(low), high=math.exp(high))
    inputs = sorted((memory, *others), key=lambda effect: -effect.size)
    return PlanRange(LikelySpeed(prediction.tokens_per_s, whole), figures, tuple(inputs))


def shifted(chance: float, shift: float) -> float:
    """A chance whose log-odds are larger by `shift`; 0 and 1 stay."""
    odds = chance * math.exp(shift)
    return odds / (odds + 1 - chance)


def _memory(problem: PlanningProblem, plan: Plan, text: PlanningText, spreads: Spreads) -> InputEffect:
    """Memory of every device as slow, and as fast, as its figures leave open."""
    steps = spread_steps(text.trace, problem.workload.tokens_per_step, _STEPS)
    known = [range_of((device.figures_from,), spreads) for device in problem.devices]
    sides = ([1.0] * len(known), [each.low for each in known], [each.high for each in known])
    now_s, slow_s, fast_s = (
        _step_s(replace(problem, devices=tuple(map(_with_memory, problem.devices, factors))), plan, steps)
        for factors in sides
    )
    return InputEffect("memory", now_s / slow_s, now_s / fast_s, "how fast memory is read")


def _with_memory(device: PlanningDevice, factor: float) -> PlanningDevice:
    """The device if all that it reads came `factor` times as fast; its kernels wait for memory too."""
    machine, attention = device.machine, device.attention_bandwidth_bytes_per_s
    if machine is not None:
        machine = replace(machine, bandwidth_bytes_per_s=factor * machine.bandwidth_bytes_per_s)
    return replace(
        device,
        bandwidth_bytes_per_s=factor * device.bandwidth_bytes_per_s,
        attention_bandwidth_bytes_per_s=None if attention is None else factor * attention,
        kernels=tuple(
            replace(rates, flops_per_s=tuple(factor * rate for rate in rates.flops_per_s))
            for rates in device.kernels
        ),
        machine=machine,
    )


def _drafts(problem: PlanningProblem, plan: Plan, prediction: Prediction) -> Iterator[InputEffect]:
    """Drafts that hold as in text where fewer, and where more of them do; nothing without drafts."""
    workload = problem.workload
    if not workload.drafts or not workload.accepted_drafts:
        return
    chances = workload.acceptance or (workload.accepted_drafts / workload.drafts,) * workload.drafts
    moe_s = prediction.step_time_s - prediction.head_s
    factors = []
    for shift in TEXT_SHIFTS:
        other = _with_chances(workload, chances, tuple(shifted(chance, shift) for chance in chances))
        # As many rows in each pass; what the head's MTP layers take in depends on how many drafts hold.
        head_s = System.build(plan, problem.devices, problem.shape, other).head_s
        factors.append(other.tokens_out_per_step / (moe_s + head_s) / prediction.tokens_per_s)
    low, high = (shifted(chances[0], shift) for shift in TEXT_SHIFTS)
    yield InputEffect("drafts", factors[0], factors[1], f"first drafts that hold: {low:.0%} to {high:.0%}")


def _with_chances(workload: Workload, chances: tuple[float, ...], other: tuple[float, ...]) -> Workload:
    """The workload with other chances: as many more drafts hold as by them on the mean."""
    more = Acceptance(other).mean_accepted / Acceptance(chances).mean_accepted
    accepted = min(more * workload.accepted_drafts, float(workload.drafts))
    return replace(workload, accepted_drafts=accepted, acceptance=other)


def _routing(problem: PlanningProblem, plan: Plan, text: PlanningText) -> InputEffect:
    """Other use of experts: what counts leave open, or without counts what other models do."""
    rows = problem.workload.tokens_per_step
    num_tokens = rows * max(_FEWEST_STEPS, _DRAWN_TOKENS // rows)
    shares = None if problem.stats is None else _drawn_shares(problem.stats)
    if shares is None:
        why = "experts used as unevenly as in other models, this plan kept"
        router = SyntheticRouter(problem.shape)
        traces = [text.trace[:num_tokens], *(router.trace(d, num_tokens) for d in DOMAINS.values())]
    else:
        why = f"what counts of {text.stats.num_tokens:,} tokens leave open"
        traces = [_trace(each, problem.shape.top_k, num_tokens) for each in shares]
    now_s, *others_s = (_step_s(problem, plan, trace) for trace in traces)
    factors = [1.0, *(now_s / other_s for other_s in others_s)]
    return InputEffect("routing", min(factors), max(factors), why)


def _drawn_shares(stats: RoutingStats) -> list[NDArray[np.float64]] | None:
    """Shares of choices [num_moe_layers, num_experts]: expected, then as they may be, all as likely.

    None where counts say nothing of the experts' use. Draws are from the posterior that `smooth` has the mean
    of, so tokens of one document count for less than independent ones.
    """
    smoothed = smooth(stats.counts, stats.top_k)
    if not math.isfinite(smoothed.prior_concentration):
        return None
    expected = smoothed.frequencies / stats.top_k
    known = smoothed.effective_choices + smoothed.prior_concentration
    generator = np.random.default_rng(0)
    drawn = [generator.standard_gamma(known[:, None] * expected) for _ in range(_DRAWS)]
    return [expected, *(each / each.sum(axis=1, keepdims=True) for each in drawn)]


def _trace(shares: NDArray[np.float64], top_k: int, num_tokens: int) -> NDArray[np.uint16]:
    """Tokens that choose experts in these proportions, always by the same luck.

    The first k of exponential clocks are k draws without replacement.

    Args:
        shares: [num_layers, num_experts].

    Returns:
        uint16 [num_tokens, num_layers, top_k].
    """
    generator = np.random.default_rng(1)
    rates = np.maximum(shares, 1e-30).astype(np.float32)
    chosen = np.empty((num_tokens, len(shares), top_k), dtype=np.uint16)
    for layer, rate in enumerate(rates):
        arrival = generator.standard_exponential((num_tokens, len(rate)), dtype=np.float32) / rate
        chosen[:, layer] = np.argpartition(arrival, top_k - 1, axis=1)[:, :top_k]
    return chosen


def _step_s(problem: PlanningProblem, plan: Plan, trace: NDArray[np.integer]) -> float:
    """Mean seconds of a step."""
    system = System.build(plan, problem.devices, problem.shape, problem.workload)
    return float(simulate_alone(system, [trace]).step_time_s.mean)
