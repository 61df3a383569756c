"""Sets of experts as bytes: for each layer its number, how many ids follow, and the ids, all uint32."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from placement.experts import Experts
from transport.messages import ErrorCode, WireError, WireLimits

_UINT32 = np.dtype("<u4")


def pack_experts(experts: Experts) -> bytes:
    """Layers and ids in ascending order, each once; layers without ids are left out."""
    numbers = [
        number
        for layer, ids in sorted(experts.items())
        if ids
        for number in (layer, len(set(ids)), *sorted(set(ids)))
    ]
    return np.array(numbers, _UINT32).tobytes()


def unpack_experts(block: bytes, limits: WireLimits, request_id: int) -> Experts:
    """What `pack_experts` wrote; every number is held to the model.

    Raises:
        WireError: UNKNOWN_LAYER, or BAD_SHAPE for all else.
    """

    def refuse(problem: str) -> WireError:
        return WireError(ErrorCode.BAD_SHAPE, f"a set of experts {problem}", request_id)

    if len(block) % 4:
        raise refuse(f"of {len(block)} bytes, expected a multiple of 4")
    numbers = np.frombuffer(block, _UINT32).tolist()
    experts: dict[int, tuple[int, ...]] = {}
    place, last = 0, -1
    while place < len(numbers):
        layer, count = numbers[place], numbers[place + 1] if place + 1 < len(numbers) else 0
        ids = tuple(numbers[place + 2 : place + 2 + count])
        if layer not in limits.moe_layers:
            message = f"layer {layer} is not a MoE layer of this model"
            raise WireError(ErrorCode.UNKNOWN_LAYER, message, request_id)
        if layer <= last:
            raise refuse("whose layers do not ascend")
        if not count or len(ids) != count:
            raise refuse(f"that ends within layer {layer}")
        if ids[-1] >= limits.num_experts or any(a >= b for a, b in pairwise(ids)):
            raise refuse(f"with ids in layer {layer} that do not ascend below {limits.num_experts}")
        experts[layer] = ids
        place, last = place + 2 + count, layer
    return experts
