"""The prefill time of one MoE layer as a function of who holds what, for the planner's search."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from placement.cost import ExpertRates, device_seconds, expert_rates
from placement.problem import PlanningProblem
from placement.workload import Workload


def prefill_rates(problem: PlanningProblem) -> ExpertRates:
    """The rates of a pass of `workload.prefill_tokens` tokens."""
    tokens = problem.workload.prefill_tokens
    return expert_rates(replace(problem, workload=replace(problem.workload, num_sequences=tokens, drafts=0)))


class PrefillLayer:
    """One layer: every expert is touched, so the time at the mean routing is the mean time."""

    def __init__(self, rates: ExpertRates, workload: Workload, frequencies: NDArray[np.float64]) -> None:
        """`frequencies`: float64 [num_experts], share of tokens that choose the expert."""
        self._rates = rates
        self._tokens = workload.prefill_tokens
        self._passes = workload.prefill_passes_per_step
        self._pairs = frequencies * workload.prefill_tokens

    def seconds(self, holder: NDArray[np.integer]) -> float:
        """Prefill seconds of the layer that fall to one decode step, `holder`: int [num_experts]."""
        return float(self._seconds(*self._load(holder)).max()) * self._passes

    def changes(self, holder: NDArray[np.integer]) -> NDArray[np.float64]:
        """Change of `seconds` if one expert moves, float64 [num_experts, num_devices]."""
        experts = np.arange(len(holder))
        pairs, held = self._load(holder)
        times = self._seconds(pairs, held)
        fewer = self._seconds(pairs[holder] - self._pairs, held[holder] - 1, holder)
        more = self._seconds(pairs + self._pairs[:, None], held + 1)
        others = np.broadcast_to(times, more.shape).copy()
        others[experts, holder] = fewer
        change = np.maximum(_largest_of_others(others), more) - times.max()
        change[experts, holder] = 0.0
        scaled: NDArray[np.float64] = change * self._passes
        return scaled

    def _load(self, holder: NDArray[np.integer]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Pairs and experts of each device."""
        num_devices = len(self._rates.read_s)
        pairs = np.bincount(holder, weights=self._pairs, minlength=num_devices)
        held = np.bincount(holder, minlength=num_devices).astype(np.int64)
        return pairs.astype(np.float64), held

    def _seconds(
        self,
        pairs: NDArray[np.float64],
        held: NDArray[np.integer],
        devices: NDArray[np.integer] | slice = slice(None),
    ) -> NDArray[np.float64]:
        """As `prefill_seconds` has it, for some devices or all."""
        rates = ExpertRates(
            *(getattr(self._rates, name)[devices] for name in ExpertRates.__dataclass_fields__)
        )
        return device_seconds(
            rates, np.minimum(pairs, self._tokens), np.minimum(pairs, held), np.maximum(pairs, 0.0)
        )


def _largest_of_others(times: NDArray[np.float64]) -> NDArray[np.float64]:
    """For each entry the largest of its row without it, 0 where it is alone."""
    if times.shape[1] == 1:
        return np.zeros_like(times)
    top = np.partition(times, -2, axis=1)[:, -2:]
    is_largest = times == top[:, 1:]
    return np.where(is_largest, top[:, :1], top[:, 1:])
