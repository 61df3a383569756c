"""One layer in a sample of steps: its time under any holders, and what each expert's move would change.

A layer of a sample is a list of reads (step, distinct expert). What moving an expert would change is found
for every expert and device at once, from its reads alone. An expert seen seldom is judged mostly by what
all experts of its device show: the change that a read brings is shrunk towards their mean, so that the
search learns who is busy together only where the sample says so often enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from placement.cost.prefill import prefill_rates
from placement.cost.rates import expert_rates
from placement.cost.roofline import ExpertRates, device_seconds
from placement.cost.sharing import has_message_costs
from placement.given.problem import PlanningProblem
from placement.policies.least_time.prefill_layer import PrefillLayer

# An expert needs as many reads as this to count as much by itself as all experts of its device do.
SHRINKAGE = 100.0


@dataclass(frozen=True, slots=True, eq=False)
class LayerSample:
    """One layer in a sample of steps: the experts each step reads, each once, expert after expert.

    Attributes:
        chosen: int [num_steps, tokens_per_step, top_k], the choices themselves.
        step, expert: int64 [num_reads].
        seen: int64 [num_experts], reads in the sample.
        frequencies: float64 [num_experts], expected share of tokens that choose the expert.
        expected: float64 [num_experts], reads to expect of a step.
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
    def pairs_per_read(self) -> float:
        """Tokens of a step that share an expert, on average."""
        return self.chosen.size / len(self.step)


def sample_layers(
    trace: NDArray[np.integer],
    frequencies: NDArray[np.float64],
    tokens_per_step: int,
    most_reads: int,
) -> list[LayerSample]:
    """Steps spread evenly over `trace`, about `most_reads` of them in each layer.

    Args:
        trace: int [num_tokens, num_layers, top_k], at least one step.
        frequencies: float64 [num_layers, num_experts], expected share of tokens that choose the expert.
    """
    _, num_layers, top_k = trace.shape
    num_steps = len(trace) // tokens_per_step
    steps = trace[: num_steps * tokens_per_step].reshape(num_steps, tokens_per_step, num_layers, top_k)
    wanted = min(num_steps, max(1, most_reads // (tokens_per_step * top_k)))
    steps = steps[np.linspace(0, num_steps - 1, wanted).astype(np.intp)]
    layers = []
    for row in range(num_layers):
        is_read = np.zeros((wanted, frequencies.shape[1]), dtype=np.bool_)
        chosen = steps[:, :, row]
        np.put_along_axis(is_read, chosen.reshape(wanted, -1).astype(np.intp), True, axis=1)
        expert, step = np.nonzero(is_read.T)
        expected = 1 - (1 - np.minimum(frequencies[row], 1.0)) ** tokens_per_step
        layers.append(LayerSample(chosen, step, expert, is_read.sum(axis=0), frequencies[row], expected))
    return layers


@dataclass(frozen=True, eq=False)
class Loads:
    """What each device has to do in every step of one layer.

    Attributes:
        at: int [num_reads], the device that computes each read.
        cells: int64 [num_steps, num_devices], of `LayerSearch`'s table: the device and its distinct experts.
        times: float64 [num_steps, num_devices].
        messages_s: the head's software for all requests of a step, on average.
    """

    at: NDArray[np.integer]
    cells: NDArray[np.int64]
    times: NDArray[np.float64]
    messages_s: float = 0.0

    @cached_property
    def mean_s(self) -> float:
        # Column after column: numpy takes ten times as long over many short rows.
        return float(np.asfortranarray(self.times).max(axis=1).mean()) + self.messages_s

    @cached_property
    def slowest(self) -> NDArray[np.intp]:
        """[num_steps], the device that a step waits for, of equals the first."""
        slowest: NDArray[np.intp] = self.times.argmax(axis=1)
        return slowest

    @cached_property
    def longest(self) -> NDArray[np.float64]:
        """float64 [3, num_steps, 1], the three longest times of a step, 0 where there are fewer devices."""
        longest = np.zeros((3, len(self.times), 1))
        found = np.sort(self.times, axis=1)[:, :-4:-1]
        longest[: found.shape[1], :, 0] = found.T
        return longest


class LayerSearch:
    """One layer's time under any holders, and the change that each expert's move would bring.

    Each device counts as a box of its own, with its own message: a move then changes two devices alone.
    """

    def __init__(
        self,
        sample: LayerSample,
        rates: ExpertRates,
        tokens_per_step: int,
        prefill: PrefillLayer | None,
        shrinkage: float,
    ) -> None:
        self.sample = sample
        self._shrinkage = shrinkage
        self._prefill = prefill
        counts = np.arange(int(np.bincount(sample.step).max()) + 2)[:, None]
        # A step's rows to a device and its pairs are taken as in the mean of all sets of as many experts.
        rows = expected_rows(counts, tokens_per_step, sample.pairs_per_read)
        seconds = device_seconds(rates, rows, counts, counts * sample.pairs_per_read)
        # First all of device 0, by its distinct experts, then of device 1.
        self._table = np.ascontiguousarray(seconds.T).ravel()
        self._first_cell = np.arange(seconds.shape[1]) * len(counts)
        # The head's software for a request, in the same order; None where it costs nothing.
        self._messages: NDArray[np.float64] | None = None
        if has_message_costs(rates):
            messages = (counts > 0) * rates.message_s + rows * rates.message_row_s
            self._messages = np.ascontiguousarray(messages.T).ravel()
        self._ends = np.concatenate([[0], np.cumsum(sample.seen)])
        # For sums over each expert's reads. Only what the reads name changes from one sum to the next, and
        # making a matrix takes longer than a product.
        self._of_reads = _row_sums(np.zeros_like(sample.step), self._ends, 2 * sample.num_steps)

    def loads(self, at: NDArray[np.integer]) -> Loads:
        """The layer if device `at` [num_reads] computes each read."""
        num_steps, num_devices = self.sample.num_steps, len(self._first_cell)
        counts = np.bincount(self.sample.step * num_devices + at, minlength=num_steps * num_devices)
        cells = counts.reshape(num_steps, num_devices) + self._first_cell
        messages_s = 0.0
        if self._messages is not None:
            messages_s = float(self._messages.take(cells).sum()) / num_steps
        return Loads(at, cells, self._table.take(cells), messages_s)

    def held(self, holder: NDArray[np.integer]) -> Loads:
        """The layer if `holder` [num_experts] has each expert."""
        return self.loads(holder.take(self.sample.expert))

    def seconds(self, holder: NDArray[np.integer], loads: Loads | None = None) -> float:
        """Expected of the layer if `holder` [num_experts] has each expert; `loads`: those, if known."""
        decode_s = (loads or self.held(holder)).mean_s
        return decode_s if self._prefill is None else decode_s + self._prefill.seconds(holder)

    def held_seconds(self, loads: Loads, masks: NDArray[np.bool_]) -> float:
        """Expected of the layer with these loads if `masks`, bool [num_devices, num_experts], are held."""
        return loads.mean_s if self._prefill is None else loads.mean_s + self._prefill.seconds_held(masks)

    def moves(
        self, holder: NDArray[np.integer], devices: NDArray[np.integer], loads: Loads | None = None
    ) -> NDArray[np.float64]:
        """Change of `seconds` if one expert moves: float64 [num_experts, len(devices)], 0 where it is.

        Args:
            holder: int [num_experts], the device of each expert.
            devices: int, devices to move to; experts of others count as 0.
            loads: those under `holder`, if known.
        """
        loads = loads or self.held(holder)
        more_s = self._with_one_more(loads, devices)
        # No step gets faster by an expert taken from any but its slowest device.
        added = np.maximum(more_s - loads.longest[0], 0.0)
        changes = np.concatenate([added, self._relief(loads, devices, more_s)])
        step = self.sample.step
        row = step + len(added) * (loads.at == loads.slowest.take(step))
        if self._messages is not None:
            changes += np.tile(self._message_more(loads, devices), (2, 1))
        self._of_reads.indices = row.astype(self._of_reads.indptr.dtype)
        sums: NDArray[np.float64] = self._of_reads @ changes
        if self._messages is not None:
            spared = self._message_saving(loads).take(step * len(self._first_cell) + loads.at)
            sums -= np.bincount(self.sample.expert, spared, len(sums))[:, None]
        column = np.full(len(self._first_cell), -1)
        column[devices] = np.arange(len(devices))
        here = column.take(holder)
        sums[here < 0] = 0.0
        sums[np.arange(len(here)), here] = 0.0
        change = self._expected_change(sums, holder)
        return change if self._prefill is None else change + self._prefill.changes(holder, devices)

    def copies(
        self, loads: Loads, first: NDArray[np.integer], masks: NDArray[np.bool_]
    ) -> NDArray[np.float64]:
        """Change of `held_seconds` by one more copy, float64 [num_experts, num_devices].

        It is used in the steps in which it helps, so no step gets slower; prompts may.

        Args:
            first: int [num_experts], a device that holds the expert.
            masks: bool [num_devices, num_experts], all that do.
        """
        devices = np.arange(len(self._first_cell))
        change = self._relief(loads, devices, self._with_one_more(loads, devices))
        if self._messages is not None:
            change += self._message_more(loads, devices)
            change -= self._message_saving(loads)[np.arange(len(change)), loads.slowest][:, None]
        np.minimum(change, 0.0, out=change)
        change[np.arange(len(change)), loads.slowest] = 0.0
        step = self.sample.step
        reads = np.flatnonzero(loads.at == loads.slowest.take(step))
        sums: NDArray[np.float64] = (
            _row_sums(step[reads], np.searchsorted(reads, self._ends), len(change)) @ change
        )
        gains = self._expected_change(sums, first)
        return gains if self._prefill is None else gains + self._prefill.copies(masks)

    def _with_one_more(self, loads: Loads, devices: NDArray[np.integer]) -> NDArray[np.float64]:
        """Seconds of `devices` with one expert more, [num_steps, len(devices)]."""
        seconds: NDArray[np.float64] = self._table.take(loads.cells[:, devices] + 1)
        return seconds

    def _message_more(self, loads: Loads, devices: NDArray[np.integer]) -> NDArray[np.float64]:
        """What an expert more on each of `devices` adds to the head's software, [num_steps, len(devices)]."""
        assert self._messages is not None
        cells = loads.cells[:, devices]
        more: NDArray[np.float64] = self._messages.take(cells + 1) - self._messages.take(cells)
        return more

    def _message_saving(self, loads: Loads) -> NDArray[np.float64]:
        """What an expert less on a device spares the head, [num_steps, num_devices], where it has one."""
        assert self._messages is not None
        spared: NDArray[np.float64] = self._messages.take(loads.cells) - self._messages.take(loads.cells - 1)
        return spared

    def _relief(
        self, loads: Loads, devices: NDArray[np.integer], more_s: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Change of each step's seconds if one of `devices` took an expert of its slowest device.

        float64 [num_steps, len(devices)]; says nothing about that device itself.
        """
        first_s, second_s, third_s = loads.longest
        cells = loads.cells[np.arange(len(loads.cells)), loads.slowest]
        # The longest of all but these two; if another takes as long as the second, the third does.
        change: NDArray[np.float64] = np.where(loads.times[:, devices] == second_s, third_s, second_s)
        np.maximum(change, self._table.take(cells - 1)[:, None], out=change)
        np.maximum(change, more_s, out=change)
        change -= first_s
        return change

    def _expected_change(self, sums: NDArray[np.float64], holder: NDArray[np.integer]) -> NDArray[np.float64]:
        """Seconds a step, from what an expert's reads in the sample add up to, [num_experts, columns]."""
        sample, num_devices = self.sample, len(self._first_cell)
        seen = np.bincount(holder, weights=sample.seen, minlength=num_devices)
        columns = sums.shape[1]
        cells = holder[:, None] * columns + np.arange(columns)
        of_devices = np.bincount(cells.ravel(), weights=sums.ravel(), minlength=num_devices * columns)
        typical = of_devices.reshape(num_devices, columns) / np.maximum(seen, 1.0)[:, None]
        sums += self._shrinkage * typical[holder]
        sums *= (sample.expected / (sample.seen + self._shrinkage))[:, None]
        return sums


def expected_rows(
    experts: NDArray[np.integer] | NDArray[np.floating], tokens_per_step: int, pairs_per_read: float
) -> NDArray[np.float64]:
    """How many of a step's tokens choose one of so many experts that the step reads: the shape of `experts`.

    Each token chooses a read expert as often as any other: `pairs_per_read / tokens_per_step`.
    """
    without: NDArray[np.float64] = np.power(1 - pairs_per_read / tokens_per_step, experts, dtype=np.float64)
    return tokens_per_step * (1 - without)


def _row_sums(rows: NDArray[np.integer], ends: NDArray[np.integer], num_rows: int) -> csr_array:
    """A matrix whose row i sums up those of `num_rows` rows that `rows[ends[i] : ends[i + 1]]` names."""
    return csr_array((np.ones(len(rows)), rows, ends), shape=(len(ends) - 1, num_rows))


def layer_searches(
    problem: PlanningProblem, layers: Sequence[LayerSample], shrinkage: float = SHRINKAGE
) -> list[LayerSearch]:
    """Searches for a problem's devices and workload.

    Args:
        shrinkage: reads at which an expert counts as much by itself as its device's experts do.
    """
    rates, workload = expert_rates(problem), problem.workload
    passes = prefill_rates(problem, workload.prefill_tokens) if workload.prefill_passes_per_step else None
    return [
        LayerSearch(
            sample,
            rates,
            workload.tokens_per_step,
            None if passes is None else PrefillLayer(passes, workload, sample.frequencies),
            shrinkage,
        )
        for sample in layers
    ]
