"""Moves single experts between devices while the expected time falls, then copies experts into spare room.

Each layer of a sample of steps is a list of touches (step, distinct expert). What moving an expert would
change is found for every expert and device at once, from its touches alone. An expert seen seldom is judged
mostly by what all experts of its device show: the change that a touch brings is shrunk towards their mean,
so that the search learns who is busy together only where the sample says so often enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from placement.cost import ExpertRates, device_seconds, expert_rates
from placement.exchanges import best_moves
from placement.prefill_layer import PrefillLayer, prefill_rates
from placement.problem import PlanningProblem

# An expert needs as many touches as this to count as much by itself as all experts of its device do.
SHRINKAGE = 100.0
# Moves a layer makes in one round before what they change is measured again; fewer where they clash.
_MOVES_A_ROUND = (16, 8, 4, 2, 1)
_MOST_ROUNDS = 30
# The work of a round grows with the square of the devices that it looks at together. A sweep of rounds looks
# at all of them.
_MOST_IN_A_PARTY = 16
_LEAST_SWEEPS = 3
# A round that gains less than this share of the time is one of fewer moves next time.
_LEAST_GAIN = 1e-3


@dataclass(frozen=True, slots=True, eq=False)
class Touched:
    """One layer in a sample of steps: the experts each step reads, each once, expert after expert.

    Attributes:
        chosen: int [num_steps, tokens_per_step, top_k], the choices themselves.
        step, expert: int64 [num_touches].
        seen: int64 [num_experts], touches in the sample.
        frequencies: float64 [num_experts], expected share of tokens that choose the expert.
        expected: float64 [num_experts], touches to expect of a step.
    """

    chosen: NDArray[np.integer]
    step: NDArray[np.int64]
    expert: NDArray[np.int64]
    seen: NDArray[np.int64]
    frequencies: NDArray[np.float64]
    expected: NDArray[np.float64]

    @property
    def num_steps(self) -> int:
        return len(self.chosen)

    @property
    def pairs_per_touch(self) -> float:
        """Tokens of a step that share an expert, on average."""
        return self.chosen.size / len(self.step)


def touched_layers(
    trace: NDArray[np.integer],
    frequencies: NDArray[np.float64],
    tokens_per_step: int,
    most_touches: int,
) -> list[Touched]:
    """Steps spread evenly over `trace`, about `most_touches` of them in each layer.

    Args:
        trace: int [num_tokens, num_layers, top_k], at least one step.
        frequencies: float64 [num_layers, num_experts], expected share of tokens that choose the expert.
    """
    _, num_layers, top_k = trace.shape
    num_steps = len(trace) // tokens_per_step
    steps = trace[: num_steps * tokens_per_step].reshape(num_steps, tokens_per_step, num_layers, top_k)
    wanted = min(num_steps, max(1, most_touches // (tokens_per_step * top_k)))
    steps = steps[np.linspace(0, num_steps - 1, wanted).astype(np.intp)]
    layers = []
    for row in range(num_layers):
        is_touched = np.zeros((wanted, frequencies.shape[1]), dtype=np.bool_)
        chosen = steps[:, :, row]
        np.put_along_axis(is_touched, chosen.reshape(wanted, -1).astype(np.intp), True, axis=1)
        expert, step = np.nonzero(is_touched.T)
        expected = 1 - (1 - np.minimum(frequencies[row], 1.0)) ** tokens_per_step
        layers.append(Touched(chosen, step, expert, is_touched.sum(axis=0), frequencies[row], expected))
    return layers


class LayerSearch:
    """One layer's time under any holders, and the change that each expert's move would bring."""

    def __init__(
        self,
        touched: Touched,
        rates: ExpertRates,
        tokens_per_step: int,
        prefill: PrefillLayer | None,
        shrinkage: float,
    ) -> None:
        self.touched = touched
        self._shrinkage = shrinkage
        self._prefill = prefill
        counts = np.arange(int(np.bincount(touched.step).max()) + 2)[:, None]
        rows = np.minimum(counts, tokens_per_step)
        # A step's rows to a device are taken as min(experts, tokens), its pairs as in the mean of all.
        seconds = device_seconds(rates, rows, counts, counts * touched.pairs_per_touch)
        self._table = np.ascontiguousarray(seconds.T)
        self._devices = np.arange(len(self._table))
        touches = np.arange(len(touched.expert))
        shape = (len(touched.seen), len(touches))
        self._by_expert = csr_array((np.ones(len(touches)), (touched.expert, touches)), shape=shape)

    def seconds(self, holder: NDArray[np.integer]) -> float:
        """Expected of the layer if `holder` [num_experts] has each expert."""
        decode_s = self.seconds_at(holder[self.touched.expert])
        return decode_s if self._prefill is None else decode_s + self._prefill.seconds(holder)

    def seconds_at(self, at: NDArray[np.integer]) -> float:
        """Mean of the layer's decode time if device `at` [num_touches] computes each touch."""
        return float(self._table[self._devices, self._counts(at)].max(axis=1).mean())

    def moves(self, holder: NDArray[np.integer], devices: NDArray[np.integer]) -> NDArray[np.float64]:
        """Change of `seconds` if one expert moves: float64 [num_experts, len(devices)], 0 where it is.

        Args:
            holder: int [num_experts], the device of each expert.
            devices: int, devices to move to; experts of others count as 0.
        """
        touched = self.touched
        at = holder[touched.expert]
        touches = np.flatnonzero(np.isin(at, devices)) if len(devices) < len(self._devices) else None
        change = self._expected(self._touch_changes(at, devices, touches), touches, holder)
        return change if self._prefill is None else change + self._prefill.changes(holder)[:, devices]

    def copies(self, at: NDArray[np.integer], first: NDArray[np.integer]) -> NDArray[np.float64]:
        """Change by one more copy, float64 [num_experts, num_devices].

        It is used in the steps in which it helps, so nothing gets slower.

        Args:
            at: int [num_touches], the device that computes each touch.
            first: int [num_experts], a device that holds the expert.
        """
        change = self._touch_changes(at, self._devices, None)
        return self._expected(np.minimum(change, 0.0, out=change), None, first)

    def _touch_changes(
        self, at: NDArray[np.integer], devices: NDArray[np.integer], touches: NDArray[np.intp] | None
    ) -> NDArray[np.float64]:
        """Change of a step's seconds if one touch of it were another device's, [touches, len(devices)]."""
        table, counts = self._table, self._counts(at)
        times = table[self._devices, counts]
        step = self.touched.step if touches is None else self.touched.step[touches]
        at = at if touches is None else at[touches]
        rest = largest_without(times, at, step, devices)
        source = table[at, counts[step, at] - 1]
        change = table[devices, counts[:, devices] + 1].take(step, axis=0)
        np.maximum(change, np.maximum(rest, source[:, None], out=rest), out=change)
        change -= times.max(axis=1).take(step)[:, None]
        change[at[:, None] == devices] = 0.0
        result: NDArray[np.float64] = change
        return result

    def _expected(
        self,
        change: NDArray[np.float64],
        touches: NDArray[np.intp] | None,
        holder: NDArray[np.integer],
    ) -> NDArray[np.float64]:
        """Seconds a step, [num_experts, columns], of `change` [num_touches, columns]."""
        touched = self.touched
        by_expert = self._by_expert if touches is None else self._by_expert[:, touches]
        sums = by_expert @ change
        seen = np.bincount(holder, weights=touched.seen, minlength=len(self._table))
        on_device = (self._devices[:, None] == holder).astype(np.float64)
        typical = (on_device @ sums) / np.maximum(seen, 1.0)[:, None]
        sums += self._shrinkage * typical[holder]
        sums *= (touched.expected / (touched.seen + self._shrinkage))[:, None]
        expected: NDArray[np.float64] = sums
        return expected

    def _counts(self, at: NDArray[np.integer]) -> NDArray[np.int64]:
        """Distinct experts each device reads, int64 [num_steps, num_devices]."""
        num_steps, num_devices = self.touched.num_steps, len(self._table)
        counts = np.bincount(self.touched.step * num_devices + at, minlength=num_steps * num_devices)
        return counts.reshape(num_steps, num_devices)


def layer_searches(
    problem: PlanningProblem, layers: Sequence[Touched], shrinkage: float = SHRINKAGE
) -> list[LayerSearch]:
    """Searches for a problem's devices and workload.

    Args:
        shrinkage: touches at which an expert counts as much by itself as its device's experts do.
    """
    rates, workload = expert_rates(problem), problem.workload
    passes = prefill_rates(problem) if workload.prefill_passes_per_step else None
    return [
        LayerSearch(
            touched,
            rates,
            workload.tokens_per_step,
            None if passes is None else PrefillLayer(passes, workload, touched.frequencies),
            shrinkage,
        )
        for touched in layers
    ]


def refine(
    problem: PlanningProblem,
    holders: NDArray[np.integer],
    layers: Sequence[Touched],
    most_moves: int | None = None,
    most_rounds: int = _MOST_ROUNDS,
    shrinkage: float = SHRINKAGE,
) -> NDArray[np.int64]:
    """Move experts while the time expected from the sample falls.

    Args:
        holders: int [num_layers, num_experts], one device for each expert, within capacity.
        layers: the sample, see `touched_layers`.
        most_moves: experts that may end elsewhere than they began; None for any number.
        shrinkage: see `layer_searches`.

    Returns:
        int64, the same shape.
    """
    searches = layer_searches(problem, layers, shrinkage)
    capacities = problem.capacities()
    current = holders.astype(np.int64)
    begin = current.copy()
    seconds = np.array([search.seconds(row) for search, row in zip(searches, current, strict=True)])
    gains: dict[int, NDArray[np.float64]] = {}
    sizes = list(_MOVES_A_ROUND)
    draws = np.random.default_rng(0)
    sweeps = max(-(-most_rounds // len(_parties(problem, draws))), _LEAST_SWEEPS)
    for _ in range(sweeps):
        before_s, refused, parties = seconds.sum(), 0, _parties(problem, draws)
        for devices in parties:
            room = (capacities - np.bincount(current.ravel(), minlength=len(capacities)))[devices]
            left = None if most_moves is None else most_moves - int((current != begin).sum())
            if len(parties) > 1:
                gains.clear()
            for row in range(len(searches)):
                if row not in gains:
                    gains[row] = searches[row].moves(current[row], devices)
            column = np.full(len(capacities), -1)
            column[devices] = np.arange(len(devices))
            moves, _ = best_moves(
                np.stack([gains[row] for row in range(len(searches))]), column[current], room, sizes[0], left
            )
            trial, trial_seconds = current.copy(), seconds.copy()
            for move in moves:
                trial[move.row, move.expert] = devices[move.target]
            moved = {move.row for move in moves}
            for row in moved:
                trial_seconds[row] = searches[row].seconds(trial[row])
            if trial_seconds.sum() < seconds.sum():
                current, seconds = trial, trial_seconds
                for row in moved:
                    del gains[row]
            else:
                refused += 1
        if before_s - seconds.sum() < _LEAST_GAIN * before_s or 2 * refused > len(parties):
            del sizes[0]
            if not sizes:
                break
    return current


def _parties(problem: PlanningProblem, draws: np.random.Generator) -> list[NDArray[np.intp]]:
    """Devices to search among at once: all, or many of them in parties drawn by lot, home in each."""
    is_home = np.array([device.is_home for device in problem.devices])
    if len(is_home) <= _MOST_IN_A_PARTY:
        return [np.arange(len(is_home))]
    home = np.flatnonzero(is_home)
    others = draws.permutation(np.flatnonzero(~is_home))
    parts = -(-len(others) // max(_MOST_IN_A_PARTY - len(home), 1))
    return [np.sort(np.concatenate([home, part])) for part in np.array_split(others, parts)]


def largest_without(
    times: NDArray[np.float64],
    at: NDArray[np.integer],
    step: NDArray[np.integer],
    devices: NDArray[np.integer],
) -> NDArray[np.float64]:
    """For each touch the largest time of its step over all devices but its own and the column's.

    Args:
        times: float64 [num_steps, num_devices], none negative.
        at, step: int [num_touches].
        devices: int, of the columns.

    Returns:
        float64 [num_touches, len(devices)].
    """
    num_steps, num_devices = times.shape
    padded = np.zeros((num_steps, max(num_devices, 3)))
    padded[:, :num_devices] = times
    top = np.argpartition(-padded, 2, axis=1)[:, :3]
    values = np.take_along_axis(padded, top, axis=1)
    order = np.argsort(-values, axis=1)
    top, values = (np.take_along_axis(array, order, axis=1)[step] for array in (top, values))
    first, second = top[:, 0] == at, top[:, 1] == at
    largest = np.where(first, values[:, 1], values[:, 0])
    device = np.where(first, top[:, 1], top[:, 0])
    next_largest = np.where(first | second, values[:, 2], values[:, 1])
    rest: NDArray[np.float64] = np.where(device[:, None] == devices, next_largest[:, None], largest[:, None])
    return rest
