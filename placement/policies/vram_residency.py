"""A text run with VRAM as a cache whose misses are computed in RAM, by each rule of `placement.residency`.

docs/policies.md, 'background-lru, background-lfu'.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil

import numpy as np
from numpy.typing import NDArray

from placement.assign.replica_columns import Choices
from placement.cost.head import head_seconds
from placement.cost.rates import expert_rates
from placement.errors import InputError, PlanDoesNotFit
from placement.given.problem import PlanningProblem
from placement.given.stats import RoutingStats
from placement.holders import HolderTable
from placement.policies.baselines.cached_experts import fast_device, fetch_seconds, homes_beside
from placement.policies.baselines.fixed import hottest
from placement.replay.evaluate import Evaluation, evaluate, evaluate_choices
from placement.residency import HALF_LIFE_STEPS, Residency, ResidencyRule
from placement.routing.text import Text

FIXED_MARGIN = 0.03
"""By so much a rule that moves experts must be faster than fixed ones: the simulator is not truer."""

_RULES = tuple(ResidencyRule)


@dataclass(frozen=True, slots=True, eq=False)
class ResidencyResult:
    """One rule on a text.

    Attributes:
        hit_share: of the distinct experts that layers asked for, those computed in VRAM.
        moe_s_per_token: expected seconds of all MoE layers, by token of a step.
        copied_bytes: over the host link, in the whole text.
        num_steps: of the text.
        evaluation: of each step.
    """

    rule: ResidencyRule
    hit_share: float
    moe_s_per_token: float
    copied_bytes: int
    num_steps: int
    evaluation: Evaluation


def background_lru(problem: PlanningProblem, text: Text) -> Evaluation:
    """The last used experts are in VRAM, as far as they can be loaded beside the steps."""
    return simulate_residency(problem, text.trace, [ResidencyRule.lru])[0].evaluation


def background_lfu(problem: PlanningProblem, text: Text) -> Evaluation:
    """Those used most of late, likewise."""
    return simulate_residency(problem, text.trace, [ResidencyRule.lfu])[0].evaluation


def choose_residency(results: Sequence[ResidencyResult], margin: float = FIXED_MARGIN) -> ResidencyRule:
    """The fastest rule; fixed experts unless another is faster by more than `margin` of their time.

    Args:
        results: of one text, fixed experts among them.
    """
    fixed = next(result for result in results if result.rule is ResidencyRule.fixed)
    best = min(results, key=lambda result: result.moe_s_per_token)
    is_better = best.moe_s_per_token < fixed.moe_s_per_token * (1 - margin)
    return best.rule if is_better else ResidencyRule.fixed


def simulate_residency(
    problem: PlanningProblem,
    trace: NDArray[np.integer],
    rules: Sequence[ResidencyRule] = _RULES,
    *,
    half_life_steps: float = HALF_LIFE_STEPS,
) -> tuple[ResidencyResult, ...]:
    """Run a text with VRAM as a cache, by each of `rules`.

    The fastest device at home begins with the hottest experts of `problem.stats`, or empty. Every expert has
    a home on the other devices and is computed there while VRAM misses it. Between steps the rule says what
    to load from RAM. The host link copies that during the steps that follow, and takes RAM bandwidth
    meanwhile. How much it copies in a step follows from the mean step with fixed contents.

    Args:
        trace: int [num_tokens, num_moe_layers, top_k], at least one step. Statistics counted on the same text
            favour fixed experts, so it should be another one.

    Raises:
        PlanDoesNotFit: the head's box has no VRAM or no RAM, or the other devices no room for all experts.
        InputError: less than a step of text.
    """
    box = _CachedBox.of(problem)
    tokens, (_, num_layers, top_k) = problem.workload.tokens_per_step, trace.shape
    num_steps = len(trace) // tokens
    if not num_steps:
        raise InputError(f"VRAM as a cache: expected a text of {tokens} tokens or more, found {len(trace)}")
    steps = trace[: num_steps * tokens].reshape(num_steps, tokens, num_layers, top_k)
    head_s = 0.0 if problem.head is None else head_seconds(problem).total_s
    step_s = evaluate(problem, box.fixed_table(), trace).mean_s + head_s
    results = []
    for rule in rules:
        residency = box.residency(rule, half_life_steps)
        hits, copied = _run(residency, steps, step_s / box.copy_s)
        results.append(_judged(problem, box, rule, trace, steps, hits, copied, step_s))
    return tuple(results)


def chances_in_step(stats: RoutingStats, tokens_per_step: int) -> NDArray[np.float64]:
    """How likely a step uses each expert, its tokens choosing apart: float64 [num_layers, num_experts]."""
    chances: NDArray[np.float64] = 1 - (1 - stats.frequencies()) ** tokens_per_step
    return chances


@dataclass(frozen=True, slots=True, eq=False)
class _CachedBox:
    """What is the same for every rule.

    Attributes:
        fast: the device that is the cache.
        homes: int16 [num_layers, num_experts], each expert's other device.
        rams: devices that experts are copied from.
        copy_s: of one expert into VRAM.
        first: what VRAM holds at the beginning, the hottest first.
    """

    problem: PlanningProblem
    fast: int
    homes: NDArray[np.int16]
    rams: tuple[int, ...]
    copy_s: float
    first: tuple[int, ...]

    @classmethod
    def of(cls, problem: PlanningProblem) -> _CachedBox:
        fast = fast_device(problem)
        name = problem.devices[fast].tier.name
        if problem.devices[fast].tier.kind != "vram":
            raise PlanDoesNotFit(f"a cache on {name!r}: it is no VRAM; use this rule on a box with a GPU")
        rams = tuple(
            index
            for index, device in enumerate(problem.devices)
            if device.is_home and device.tier.kind == "ram" and index != fast
        )
        homes = homes_beside(problem, fast).table[:, :, 0]
        in_ram = np.isin(homes, rams)
        if not in_ram.any():
            raise PlanDoesNotFit(f"a cache on {name!r}: the head's box has no RAM with experts to cache")
        hot = [expert for expert in hottest(problem).tolist() if in_ram.flat[expert]] if problem.stats else []
        capacity = int(problem.capacities()[fast])
        copy_s = float(fetch_seconds(problem, fast)[list(rams)].max())
        return cls(problem, fast, homes, rams, copy_s, tuple(hot[:capacity]))

    def fixed_table(self) -> HolderTable:
        """What VRAM holds at the beginning, all else at its home."""
        table = self.homes.copy()
        table.flat[list(self.first)] = self.fast
        return HolderTable.from_single(table)

    def residency(self, rule: ResidencyRule, half_life_steps: float) -> Residency:
        problem, stats = self.problem, self.problem.stats
        chances = None if stats is None else chances_in_step(stats, problem.workload.tokens_per_step)
        return Residency(
            rule,
            int(problem.capacities()[self.fast]),
            problem.shape.num_moe_layers,
            problem.shape.num_experts,
            first=self.first,
            frequencies=None if chances is None else chances.ravel(),
            loadable=np.isin(self.homes, self.rams).ravel(),
            half_life_steps=half_life_steps,
        )


def _run(
    residency: Residency, steps: NDArray[np.integer], copies_per_step: float
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Drive the state machine as a run does.

    Args:
        steps: int [num_steps, tokens_per_step, num_layers, top_k].
        copies_per_step: experts that the link can bring in a step.

    Returns:
        hits: bool, as `steps`.
        copied: float64 [num_steps], experts that the link brought during each step, parts of one counted.
    """
    hits, copied = np.zeros(steps.shape, dtype=np.bool_), np.zeros(len(steps))
    rows = np.arange(steps.shape[2])[:, None]
    under_way: deque[int] = deque()
    done = 0.0  # of the foremost copy
    for number, step in enumerate(steps):
        by_layer = step.transpose(1, 0, 2)
        found = residency.note(rows, by_layer.reshape(len(by_layer), -1))
        hits[number] = found.reshape(by_layer.shape).transpose(1, 0, 2)
        copied[number] = min(copies_per_step, len(under_way) - done)
        done += copied[number]
        while under_way and done >= 1 - 1e-9:
            residency.loaded(under_way.popleft())
            done = max(done - 1, 0.0)
        # An expert loses its place when the copy into it begins, so none is chosen before that.
        begins = ceil(done + copies_per_step - 1e-9) - len(under_way)
        under_way.extend(swap.load for swap in residency.end_step(begins))
    return hits, copied


def _judged(
    problem: PlanningProblem,
    box: _CachedBox,
    rule: ResidencyRule,
    trace: NDArray[np.integer],
    steps: NDArray[np.integer],
    hits: NDArray[np.bool_],
    copied: NDArray[np.float64],
    step_s: float,
) -> ResidencyResult:
    rows = np.arange(steps.shape[2])[:, None]
    devices = np.where(hits, np.int16(box.fast), box.homes[rows, steps])
    devices = devices.astype(np.min_scalar_type(len(problem.devices)))

    def choose(layers: slice, first_step: int, expert_ids: NDArray[np.integer]) -> Choices:
        block = devices[first_step : first_step + expert_ids.shape[-1], :, layers]
        return Choices(np.ascontiguousarray(block.transpose(1, 3, 2, 0)))

    evaluation = evaluate_choices(
        problem, choose, trace, _SlowerRam(problem, box, steps, devices, copied / step_s)
    )
    first_of_layer = _first_in_step(steps)
    hit_share = float(hits[first_of_layer].mean())
    return ResidencyResult(
        rule=rule,
        hit_share=hit_share,
        moe_s_per_token=evaluation.mean_s / problem.workload.tokens_per_step,
        copied_bytes=round(float(copied.sum()) * problem.expert_bytes),
        num_steps=len(steps),
        evaluation=replace(evaluation, hit_share=hit_share),
    )


def _first_in_step(steps: NDArray[np.integer]) -> NDArray[np.bool_]:
    """bool, as `steps`: one choice of each distinct expert of a layer."""
    by_layer = steps.transpose(0, 2, 1, 3)
    flat = by_layer.reshape(*by_layer.shape[:2], -1)
    order = np.argsort(flat, axis=-1, kind="stable")
    ordered = np.take_along_axis(flat, order, -1)
    is_first = np.ones(flat.shape, dtype=np.bool_)
    is_first[..., 1:] = ordered[..., 1:] != ordered[..., :-1]
    first = np.empty_like(is_first)
    np.put_along_axis(first, order, is_first, -1)
    return first.reshape(by_layer.shape).transpose(0, 2, 1, 3)


class _SlowerRam:
    """`Arrivals`: how long RAM takes for its experts while copies read it too.

    A copy at rate c leaves B - c of a memory's bandwidth B to the processor, at least half of it, as two
    readers share a memory. Where experts lie in several RAM devices, each is charged with all copies.
    """

    def __init__(
        self,
        problem: PlanningProblem,
        box: _CachedBox,
        steps: NDArray[np.integer],
        devices: NDArray[np.unsignedinteger],
        copies_per_s: NDArray[np.float64],
    ) -> None:
        self._rates, self._devices = expert_rates(problem), devices
        self._rams = box.rams
        self._first = _first_in_step(steps)
        bandwidth = np.array([device.bandwidth_bytes_per_s for device in problem.devices])
        taken = copies_per_s[:, None] * problem.expert_bytes / bandwidth
        self._slower = 1 / np.maximum(1 - taken, 0.5)

    def __call__(self, row: int, steps: slice) -> NDArray[np.float64]:
        devices, first, rates = self._devices[steps, :, row], self._first[steps, :, row], self._rates
        seconds = np.zeros((len(devices), len(rates.read_s)))
        for ram in self._rams:
            here = devices == ram
            asked = here.any(axis=2).sum(axis=1)
            reading = (here & first).sum(axis=(1, 2)) * rates.read_s[ram] * self._slower[steps, ram]
            waits = rates.round_trip_s[ram] + rates.request_s[ram]
            seconds[:, ram] = (asked > 0) * waits + asked * rates.row_wire_s[ram] + reading
        return seconds
