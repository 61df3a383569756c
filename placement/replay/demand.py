"""How much of each device a layer needs: rows sent to it, experts it reads, products it computes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from placement.assign.column_sort import sort_columns


@dataclass(frozen=True, slots=True, eq=False)
class Demand:
    """Exact counts of one layer in successive steps; unsigned integers [num_steps, num_devices] each.

    Attributes:
        rows: tokens that need the device.
        distinct: experts it reads.
        pairs: (token, expert) pairs it computes.
        message_rows: rows of the request to its box: tokens that need any device of the box.
    """

    rows: NDArray[np.unsignedinteger]
    distinct: NDArray[np.unsignedinteger]
    pairs: NDArray[np.unsignedinteger]
    message_rows: NDArray[np.unsignedinteger]


def count_demand(
    chosen: NDArray[np.int16],
    expert_ids: NDArray[np.integer],
    num_devices: int,
    num_experts: int,
    box: NDArray[np.intp] | None = None,
) -> Demand:
    """Count one layer's work on every device, step by step.

    Args:
        chosen: int [num_steps, num_tokens, top_k], devices; an expert has one for all tokens of a step.
            `num_devices` stands for none: the choice is not counted.
        expert_ids: int, the same shape; a token's experts differ.
        box: as `count_columns` takes it.
    """
    return count_columns(
        device_columns(chosen, num_devices), expert_ids.transpose(1, 2, 0), num_devices, num_experts, box=box
    )


def device_columns(chosen: NDArray[np.int16], num_devices: int) -> NDArray[np.unsignedinteger]:
    """Devices [num_steps, ...] with the steps last and as narrow as their numbers allow."""
    narrow = np.min_scalar_type(num_devices)
    columns: NDArray[np.unsignedinteger] = np.moveaxis(chosen, 0, -1).astype(narrow, order="C")
    return columns


def count_columns(
    chosen: NDArray[np.unsignedinteger],
    expert_ids: NDArray[np.integer],
    num_devices: int,
    num_experts: int,
    repeats: NDArray[np.unsignedinteger] | None = None,
    box: NDArray[np.intp] | None = None,
) -> Demand:
    """`count_demand` with the steps along the last axis, so that every pass runs over neighbouring steps.

    Linear in the choices times the devices, except for the sort that finds the experts several tokens of a
    step share.

    Args:
        chosen: unsigned [num_tokens, top_k, ...], the steps along all further axes.
        expert_ids: int, the same shape.
        repeats: unsigned [num_devices or fewer, num_steps], choices of an expert that the step has
            already, by device; None to find them.
        box: [num_devices], `ExpertRates.box`; None where every device has a box to itself.
    """
    num_tokens, top_k = chosen.shape[:2]
    devices = chosen.reshape(num_tokens, top_k, -1)
    num_steps = devices.shape[2]
    by_token, whole = (np.min_scalar_type(most) for most in (top_k, num_tokens * top_k))
    pairs = np.empty((num_devices, num_steps), dtype=whole)
    rows = np.empty_like(pairs)
    here = np.empty(devices.shape, dtype=np.bool_)
    of_token = np.empty((num_tokens, num_steps), dtype=by_token)
    shared = np.zeros(num_devices, dtype=np.bool_) if box is None else np.bincount(box)[box] > 1
    needs_box: dict[int, NDArray[np.bool_]] = {}
    for device in range(num_devices):
        np.equal(devices, device, out=here)
        np.add.reduce(here.view(np.uint8), axis=1, dtype=by_token, out=of_token)
        np.add.reduce(of_token, axis=0, dtype=whole, out=pairs[device])
        needs_device = of_token > 0
        np.add.reduce(needs_device.view(np.uint8), axis=0, dtype=whole, out=rows[device])
        if box is not None and shared[device]:
            needs = needs_box.setdefault(int(box[device]), needs_device)
            np.logical_or(needs, needs_device, out=needs)
    message_rows = rows
    if box is not None and needs_box:
        message_rows = rows.copy()
        for number, needs in needs_box.items():
            message_rows[box == number] = np.add.reduce(needs.view(np.uint8), axis=0, dtype=whole)
    distinct = pairs
    if num_tokens > 1:
        if repeats is None:
            repeats = _count_repeats(chosen, expert_ids, num_devices, num_experts)
        distinct = pairs.copy()
        distinct[: len(repeats)] -= repeats
    return Demand(rows.T, distinct.T, pairs.T, message_rows.T)


def steps_on(chosen: NDArray[np.unsignedinteger], devices: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Steps with a choice on one of some devices: bool [num_steps].

    Args:
        chosen: unsigned [num_choices, num_steps], the number of devices for none.
        devices: bool [num_devices].
    """
    there = chosen != len(devices)
    for other in np.flatnonzero(~devices):
        there &= chosen != other
    found: NDArray[np.bool_] = there.any(axis=0)
    return found


def _count_repeats(
    chosen: NDArray[np.unsignedinteger],
    expert_ids: NDArray[np.integer],
    num_devices: int,
    num_experts: int,
) -> NDArray[np.unsignedinteger]:
    """Choices of an expert that its step has already, by device: [num_devices, num_steps]."""
    keys = np.multiply(chosen, num_experts, dtype=np.min_scalar_type((num_devices + 1) * num_experts))
    np.add(keys, expert_ids, out=keys, casting="unsafe")
    ordered = np.stack(sort_columns(keys.reshape(chosen.shape[0] * chosen.shape[1], -1)))
    num_steps = ordered.shape[1]
    found = np.flatnonzero(ordered[1:] == ordered[:-1])
    cells = ordered[1:].take(found).astype(np.intp) // num_experts * num_steps + found % num_steps
    repeats = np.zeros((num_devices + 1, num_steps), dtype=np.min_scalar_type(len(ordered)))
    np.add.at(repeats.ravel(), cells, repeats.dtype.type(1))
    return repeats[:-1]
