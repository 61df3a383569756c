"""The closed form: passes that meet nobody else's requests, a layer of thousands of them at once.

One replay serves all who ask. `simulate` counts what devices did and why layers took so long, `evaluate`
keeps each step's time. What is kept is up to a `Recorder`, so that neither pays for the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from placement.assign.many_steps import assign_columns
from placement.assign.one_step import ReplicaCosts
from placement.assign.replica_columns import Choices
from placement.cost.roofline import ExpertRates, messages_seconds, work_alone_seconds
from placement.cost.sharing import has_message_costs, layer_seconds
from placement.holders import HolderTable
from placement.replay.demand import Demand, count_columns
from placement.replay.layer_times import LayerTimes, first_largest
from placement.replay.single_token import SingleTokenTimes
from placement.replay.steps import StepBlock

# Layers are counted together while what they need fits the processor's second-level cache.
_CHOICES_AT_ONCE = 1 << 19

Chooser = Callable[[slice, int, NDArray[np.integer]], Choices]
"""(rows of MoE layers, first step, expert ids [num_tokens, top_k, num_layers, num_steps]) -> their devices.

Devices from the number of devices on mean that nothing is to be computed."""


def choose_holders(table: HolderTable, costs: ReplicaCosts) -> Chooser:
    """The dispatcher's own rule (placement/assign/)."""

    def choose(layers: slice, _first_step: int, expert_ids: NDArray[np.integer]) -> Choices:
        return assign_columns(expert_ids, table.layers[layers], costs)

    return choose


Arrivals = Callable[[int, slice], NDArray[np.float64]]
"""(row of a MoE layer, steps) -> seconds of the layer that each device takes at least: float64 [num_steps,
num_devices], 0 where nothing but its part of the work keeps it."""


@dataclass(frozen=True, slots=True, eq=False)
class LookedUpTokens:
    """One layer of passes of one token, by `SingleTokenTimes`.

    Attributes:
        devices: unsigned [top_k, num_steps], of every choice.
        rank: [num_steps], the slowest device's cell.
        cells: int64 [num_devices, top_k + 1], how often each device has each number of experts.
    """

    times: SingleTokenTimes
    devices: NDArray[np.unsignedinteger]
    rank: NDArray[np.unsignedinteger]
    cells: NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class CountedSteps:
    """Some layers of passes of any number of tokens, layer after layer: a place is a layer of a pass.

    Attributes:
        demand: of each place.
        slowest: [num_places], the device that each waits for, of equals the first.
        messages_s: float64 [num_places], the head's software for its requests.
        delayed: bool [num_places, num_devices], devices that something else than their work keeps, or None.
    """

    demand: Demand
    slowest: NDArray[np.unsignedinteger]
    messages_s: NDArray[np.float64]
    delayed: NDArray[np.bool_] | None


class Recorder(Protocol):
    """What a replay leaves behind besides each pass's time."""

    def add_tokens(self, row: int, found: LookedUpTokens, /) -> None: ...

    def add_work(self, device: int, work_s: NDArray[np.float64], /) -> None:
        """How long a device works in what `add_steps` will be called with: [num_layers, num_steps]."""

    def add_steps(self, layers: slice, found: CountedSteps, /) -> None: ...


def replay_block(
    rates: ExpertRates,
    num_experts: int,
    block: StepBlock,
    choose: Chooser,
    recorder: Recorder,
    *,
    first_step: int = 0,
    head_s: float = 0.0,
    arrivals: Arrivals | None = None,
) -> NDArray[np.float64]:
    """Seconds of each pass, float64 [num_steps].

    Args:
        rates: of passes of this size.
        num_experts: of a layer.
        first_step: number of the block's first pass, for `choose` and `arrivals`.
        head_s: the head's own time in each pass.
        arrivals: what else keeps devices.
    """
    num_steps, num_layers, num_tokens, top_k = block.expert_ids.shape
    # For single tokens times are looked up, several times as fast.
    single = SingleTokenTimes.of(rates, top_k) if num_tokens == 1 and arrivals is None else None
    # Pricing every count pays if most are looked up more than once.
    look_ups = num_steps * num_layers
    pays = single is None and look_ups > (num_tokens * top_k) ** 2
    times = LayerTimes.of(rates, num_tokens, top_k) if pays else None
    seconds, columns = np.full(num_steps, head_s), block.columns()
    # What is computed, not looked up, takes more memory.
    choices_at_once = _CHOICES_AT_ONCE if single or times else _CHOICES_AT_ONCE // 4
    layers_at_once = max(choices_at_once // (num_steps * num_tokens * top_k), 1)
    for start in range(0, num_layers, layers_at_once):
        layers = slice(start, min(start + layers_at_once, num_layers))
        expert_ids = columns[:, :, layers]
        choices = choose(layers, first_step, expert_ids)
        if single is not None:
            by_layer = _single_tokens(single, layers, choices, recorder)
        else:
            least_s = None
            if arrivals is not None:
                steps = slice(first_step, first_step + num_steps)
                rows = range(layers.start, layers.stop)
                least_s = np.concatenate([arrivals(row, steps) for row in rows])
            by_layer = _steps(rates, times, layers, choices, expert_ids, num_experts, least_s, recorder)
        for layer_s in by_layer:
            seconds += layer_s
    return seconds


def _single_tokens(
    times: SingleTokenTimes, layers: slice, choices: Choices, recorder: Recorder
) -> NDArray[np.float64]:
    """Seconds of each layer of each pass of one token: float64 [num_layers, num_steps]."""
    seconds = np.empty(choices.workers.shape[2:])
    for layer, row in enumerate(range(layers.start, layers.stop)):
        devices = choices.workers[0, :, layer]
        rank, cells = times.look_up(devices)
        recorder.add_tokens(row, LookedUpTokens(times, devices, rank, cells))
        times.seconds.take(rank, out=seconds[layer], mode="clip")
    return seconds


def _steps(
    rates: ExpertRates,
    times: LayerTimes | None,
    layers: slice,
    choices: Choices,
    expert_ids: NDArray[np.integer],
    num_experts: int,
    least_s: NDArray[np.float64] | None,
    recorder: Recorder,
) -> NDArray[np.float64]:
    """Seconds of each layer of each pass: float64 [num_layers, num_steps].

    Args:
        times: of `rates`; None to compute them.
        expert_ids: int [num_tokens, top_k, num_layers, num_steps].
        least_s: float64 [num_layers * num_steps, num_devices], what `Arrivals` say.
    """
    demand = count_columns(
        choices.workers, expert_ids, len(rates.read_s), num_experts, choices.repeats, rates.shared_box
    )

    def device_seconds() -> Iterator[NDArray[np.float64]]:
        for device, (whole_s, work_s) in enumerate(_device_seconds(rates, times, demand)):
            recorder.add_work(device, work_s.reshape(expert_ids.shape[2:]))
            yield whole_s if least_s is None else np.maximum(whole_s, least_s[:, device])

    seconds, slowest = first_largest(device_seconds())
    has_costs = has_message_costs(rates)
    messages_s = messages_seconds(rates, demand.message_rows) if has_costs else np.zeros(len(seconds))
    delayed = None if least_s is None else least_s > 0
    recorder.add_steps(layers, CountedSteps(demand, slowest, messages_s, delayed))
    return seconds.reshape(expert_ids.shape[2:])


def _device_seconds(
    rates: ExpertRates, times: LayerTimes | None, demand: Demand
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Of each device when its part is back and how long it works, float64 [num_places]."""
    counts = (demand.message_rows, demand.distinct, demand.pairs)
    if times is not None:
        for device, of_device in enumerate(zip(*(count.T for count in counts), strict=True)):
            yield times.look_up(device, *of_device)
    else:
        whole_s = layer_seconds(rates, *counts)
        work_s = work_alone_seconds(rates, demand.distinct, demand.pairs)
        yield from zip(whole_s.T, work_s.T, strict=True)
