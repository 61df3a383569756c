"""How much of each device a layer needs: rows sent to it, experts it reads, products it computes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# From so many devices on a pass over the steps for each of them takes longer than a few over all choices.
_MANY_DEVICES = 32


@dataclass(frozen=True, slots=True, eq=False)
class Touches:
    """Exact counts of one layer in successive steps; unsigned integers [num_steps, num_devices] each.

    Attributes:
        rows: tokens that need the device: rows of the request to it.
        distinct: experts it reads.
        pairs: (token, expert) pairs it computes.
    """

    rows: NDArray[np.unsignedinteger]
    distinct: NDArray[np.unsignedinteger]
    pairs: NDArray[np.unsignedinteger]


def count_touches(
    chosen: NDArray[np.int16], expert_ids: NDArray[np.integer], num_devices: int, num_experts: int
) -> Touches:
    """Count one layer's work on every device, step by step.

    Arrays are laid out device by device, so that every pass runs over neighbouring steps; many devices are
    counted all at once. Linear in the choices, except for the sort that finds the experts several tokens of
    a step share.

    Args:
        chosen: int [num_steps, num_tokens, top_k], devices; an expert has one for all tokens of a step.
            `num_devices` stands for none: the choice is not counted.
        expert_ids: int, the same shape; a token's experts differ.
    """
    num_steps, num_tokens, top_k = chosen.shape
    if num_tokens == 1:
        single = count_pairs(chosen, num_devices)
        return Touches(np.minimum(single, 1).T, single.T, single.T)
    first_on = _first_touches(chosen, expert_ids, num_devices, num_experts)
    if num_devices >= _MANY_DEVICES:
        return _count_at_once(chosen, first_on, num_devices)
    dtype = np.min_scalar_type(num_tokens * top_k)
    by_choice = _by_choice(chosen, num_devices)
    pairs = np.empty((num_devices, num_steps), dtype=dtype)
    rows = np.empty_like(pairs)
    for device in range(num_devices):
        here = by_choice == device
        here.sum(axis=0, dtype=dtype, out=pairs[device])
        by_token = here.reshape(num_tokens, top_k, num_steps).any(axis=1)
        by_token.sum(axis=0, dtype=dtype, out=rows[device])
    distinct = np.empty_like(pairs)
    for device in range(num_devices):
        (first_on == device).sum(axis=0, dtype=dtype, out=distinct[device])
    return Touches(rows.T, distinct.T, pairs.T)


def count_pairs(chosen: NDArray[np.int16], num_devices: int) -> NDArray[np.unsignedinteger]:
    """Choices of each step on each device: unsigned [num_devices, num_steps]; arguments as above."""
    by_choice = _by_choice(chosen, num_devices)
    pairs = np.empty((num_devices, len(chosen)), dtype=np.min_scalar_type(len(by_choice)))
    here = np.empty(by_choice.shape, dtype=np.bool_)
    for device in range(num_devices):
        np.equal(by_choice, device, out=here)
        np.add.reduce(here.view(np.uint8), axis=0, dtype=pairs.dtype, out=pairs[device])
    return pairs


def _count_at_once(
    chosen: NDArray[np.int16], first_on: NDArray[np.unsignedinteger], num_devices: int
) -> Touches:
    """`count_touches` in passes over the choices, however many devices; `first_on`: of `_first_touches`."""
    num_steps, num_tokens, _ = chosen.shape
    width = num_devices + 1
    by_token = np.arange(num_steps * num_tokens).reshape(num_steps, num_tokens, 1) * width + chosen
    asked = np.zeros((num_steps, num_tokens, width), dtype=np.uint8)
    asked.ravel()[by_token.ravel()] = 1
    dtype = np.min_scalar_type(chosen[:1].size)

    def counted(devices: NDArray[np.integer]) -> NDArray[np.unsignedinteger]:
        cells = (np.arange(num_steps)[:, None] * width + devices).ravel()
        counts = np.bincount(cells, minlength=num_steps * width).astype(dtype)
        return counts.reshape(num_steps, width)[:, :num_devices]

    rows = asked.sum(axis=1, dtype=dtype)[:, :num_devices]
    return Touches(rows, counted(first_on.T), counted(chosen.reshape(num_steps, -1)))


def _by_choice(chosen: NDArray[np.int16], num_devices: int) -> NDArray[np.unsignedinteger]:
    """[num_tokens * top_k, num_steps], as narrow as device numbers allow."""
    narrow = np.uint8 if num_devices < 256 else np.uint16
    return chosen.reshape(len(chosen), -1).T.astype(narrow, order="C")


def _first_touches(
    chosen: NDArray[np.int16], expert_ids: NDArray[np.integer], num_devices: int, num_experts: int
) -> NDArray[np.unsignedinteger]:
    """Device of each distinct expert [num_tokens * top_k, num_steps]; `num_devices` where one repeats."""
    # 16 bits where they suffice: numpy sorts those with vector instructions.
    dtype = np.uint16 if (num_devices + 1) * num_experts < 2**16 else np.uint32
    keys = (chosen.astype(dtype) * num_experts + expert_ids.astype(dtype)).reshape(len(chosen), -1)
    keys.sort(axis=1)
    repeats = np.zeros(keys.shape, dtype=np.bool_)
    np.equal(keys[:, 1:], keys[:, :-1], out=repeats[:, 1:])
    devices: NDArray[np.unsignedinteger] = keys // num_experts
    devices[repeats] = num_devices
    return np.ascontiguousarray(devices.T)
