"""Counts of some layers' passes, all at once: what devices did, how long each layer took and why."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from placement.assign.replica_columns import Choices
from placement.cost.roofline import ExpertRates, messages_seconds, work_alone_seconds
from placement.cost.sharing import cpu_seconds, disks_computed_beside, has_message_costs, layer_seconds
from placement.replay.layer_times import LayerTimes, first_largest
from placement.replay.single_token import SingleTokenTimes
from placement.replay.tally import Tally, num_messages
from placement.replay.touches import Touches, count_columns, steps_on


def tally_single_tokens(
    tally: Tally,
    rates: ExpertRates,
    times: SingleTokenTimes,
    layers: slice,
    choices: Choices,
) -> NDArray[np.float64]:
    """Passes of one token, by table look-up.

    Args:
        times: of `rates`.
        layers: rows of the tally.
        choices: of one token.

    Returns:
        Seconds of each layer of each pass, float64 [num_layers, num_steps].
    """
    system = tally.system
    num_devices, width = times.ranks.shape
    elsewhere = np.arange(num_devices) != system.local
    experts = np.repeat(np.arange(width)[:, None], num_devices, axis=1)
    cell_work_s = work_alone_seconds(rates, experts, experts).T
    of_cell = np.zeros((len(times.seconds), num_devices), dtype=np.uint64)
    of_cell[np.arange(len(of_cell)), times.device] = times.experts
    of_cells = Touches(np.minimum(of_cell, 1), of_cell, of_cell)
    causes = _causes(rates, of_cells, times.device, np.zeros(len(of_cell)), system.is_remote)
    same = np.array_equal(system.is_remote, elsewhere)
    seconds = np.empty(choices.workers.shape[2:])
    for layer, row in enumerate(range(layers.start, layers.stop)):
        columns = choices.workers[0, :, layer]
        rank, cells = times.look_up(columns)
        asked, read = cells[:, 1:].sum(axis=1), (cells * np.arange(width)).sum(axis=1)
        tally.rows += asked
        tally.distinct += read
        tally.pairs += read
        tally.device_s += (cells * cell_work_s).sum(axis=1)
        tally.messages += int(asked[elsewhere].sum())
        asking = int(np.count_nonzero(steps_on(columns, elsewhere)))
        tally.asking_layers += asking
        tally.remote_layers += asking if same else int(np.count_nonzero(steps_on(columns, system.is_remote)))
        slowest = np.bincount(rank, minlength=len(times.seconds))
        np.add.at(tally.bound_device[row], times.device, slowest)
        np.add.at(tally.bound_cause[row], causes, slowest)
        times.seconds.take(rank, out=seconds[layer], mode="clip")
    return seconds


def tally_steps(
    tally: Tally,
    rates: ExpertRates,
    times: LayerTimes | None,
    layers: slice,
    choices: Choices,
    expert_ids: NDArray[np.integer],
) -> NDArray[np.float64]:
    """Passes of any number of tokens.

    Args:
        times: of `rates`; None to compute them.
        layers: rows of the tally.
        choices: of any number of tokens.
        expert_ids: int [num_tokens, top_k, num_layers, num_steps].

    Returns:
        Seconds of each layer of each pass, float64 [num_layers, num_steps].
    """
    system = tally.system
    num_layers, num_steps = expert_ids.shape[2:]
    num_devices = system.num_devices
    touches = count_columns(
        choices.workers, expert_ids, num_devices, system.shape.num_experts, choices.repeats
    )
    work_s = np.empty((num_layers, num_devices))

    def device_seconds() -> Iterator[NDArray[np.float64]]:
        for device, (whole_s, part_s) in enumerate(_device_seconds(rates, times, touches)):
            part_s.reshape(num_layers, num_steps).sum(axis=1, out=work_s[:, device])
            yield whole_s

    seconds, last = first_largest(device_seconds())
    messages_s = messages_seconds(rates, touches.rows) if has_message_costs(rates) else np.zeros(len(seconds))
    # Layer by layer, so that sums do not depend on how many layers go together.
    for layer_s, head_s in zip(work_s, messages_s.reshape(num_layers, num_steps), strict=True):
        tally.device_s += layer_s
        tally.device_s[system.head] += head_s.sum()
    _count(tally, touches)
    causes = _causes(rates, touches, last, messages_s, system.is_remote)
    for layer, row in enumerate(range(layers.start, layers.stop)):
        steps = slice(layer * num_steps, (layer + 1) * num_steps)
        tally.bound_device[row] += np.bincount(last[steps], minlength=num_devices)
        tally.bound_cause[row] += np.bincount(causes[steps], minlength=tally.bound_cause.shape[1])
    return seconds.reshape(num_layers, num_steps)


def _device_seconds(
    rates: ExpertRates, times: LayerTimes | None, touches: Touches
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Of each device when its part is back and how long it works, float64 [num_steps]."""
    counts = (touches.rows.T, touches.distinct.T, touches.pairs.T)
    if times is not None:
        for device, of_device in enumerate(zip(*counts, strict=True)):
            yield times.look_up(device, *of_device)
    else:
        whole_s = layer_seconds(rates, touches.rows, touches.distinct, touches.pairs)
        work_s = work_alone_seconds(rates, touches.distinct, touches.pairs)
        yield from zip(whole_s.T, work_s.T, strict=True)


def _count(tally: Tally, touches: Touches) -> None:
    system = tally.system
    elsewhere = np.arange(system.num_devices) != system.local
    # Sums of a block of small counts fit 32 bits, which numpy adds faster.
    tally.rows += touches.rows.sum(axis=0, dtype=np.uint32)
    tally.distinct += touches.distinct.sum(axis=0, dtype=np.uint32)
    tally.pairs += touches.pairs.sum(axis=0, dtype=np.uint32)
    asked = touches.rows.T > 0
    tally.messages += num_messages(touches.rows.T[elsewhere])
    tally.asking_layers += int(np.count_nonzero(asked[elsewhere].any(axis=0)))
    tally.remote_layers += int(np.count_nonzero(asked[system.is_remote].any(axis=0)))


def _causes(
    rates: ExpertRates,
    touches: Touches,
    last: NDArray[np.integer],
    messages_s: NDArray[np.float64],
    is_remote: NDArray[np.bool_],
) -> NDArray[np.unsignedinteger]:
    """The largest part of the slowest device's time, an index into CAUSES, for each step.

    Args:
        last: [num_steps], the slowest device.
        messages_s: [num_steps], the head's software for all requests.
        is_remote: [num_devices], on another box than the head.
    """
    last = last.astype(np.intp)
    cell = last * len(last) + np.arange(len(last))
    rows, distinct, pairs = (
        counts.T.take(cell).astype(np.float64) for counts in (touches.rows, touches.distinct, touches.pairs)
    )
    asked = rows > 0
    if len(disks_computed_beside(rates)):
        computing = cpu_seconds(rates, touches.distinct, touches.pairs)[np.arange(len(last)), last]
    else:
        computing = pairs * rates.compute_s.take(last) + distinct * rates.expert_s.take(last)
    round_trip_s, wire_s = asked * rates.round_trip_s.take(last), rows * rates.row_wire_s.take(last)
    away = is_remote.take(last)
    parts = (
        distinct * rates.read_s.take(last),
        computing,
        away * round_trip_s,
        away * wire_s,
        rates.busy_s.take(last),
        np.zeros(len(last)),
        asked * rates.request_s.take(last) + messages_s,
        ~away * (round_trip_s + wire_s),
    )
    return first_largest(parts)[1]
