"""How much of each device a layer needs: rows sent to it, experts it reads, products it computes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


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

    Arrays are laid out device by device, so that every pass runs over neighbouring steps. Linear in the
    choices, except for the sort that finds the experts several tokens of a step share.

    Args:
        chosen: int [num_steps, num_tokens, top_k], devices; an expert has one for all tokens of a step.
            `num_devices` stands for none: the choice is not counted.
        expert_ids: int, the same shape; a token's experts differ.
    """
    num_steps, num_tokens, top_k = chosen.shape
    choices = num_tokens * top_k
    dtype = np.min_scalar_type(choices)
    narrow = np.uint8 if num_devices < 256 else np.uint16
    by_choice = np.ascontiguousarray(chosen.reshape(num_steps, choices).T.astype(narrow))
    pairs = np.empty((num_devices, num_steps), dtype=dtype)
    rows = np.empty_like(pairs)
    for device in range(num_devices):
        here = by_choice == device
        here.sum(axis=0, dtype=dtype, out=pairs[device])
        if num_tokens == 1:
            np.minimum(pairs[device], 1, out=rows[device])
        else:
            by_token = here.reshape(num_tokens, top_k, num_steps).any(axis=1)
            by_token.sum(axis=0, dtype=dtype, out=rows[device])
    if num_tokens == 1:
        return Touches(rows.T, pairs.T, pairs.T)
    distinct = np.empty_like(pairs)
    first_on = _first_touches(chosen, expert_ids, num_devices, num_experts)
    for device in range(num_devices):
        (first_on == device).sum(axis=0, dtype=dtype, out=distinct[device])
    return Touches(rows.T, distinct.T, pairs.T)


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
