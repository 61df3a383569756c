"""The routed experts' feed-forward row by row in plain torch: an oracle for the kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from transport.expert_rows import ExpertRows
from workers import fixed_point, kernels
from workers.fixed_point import PartialSum


def torch_partial_sum(experts: kernels.ExpertWeights, rows: ExpertRows) -> PartialSum:
    """What `kernels.moe_partial_sum` computes, within rounding; of weights that have a torch dtype.

    Raises:
        ExpertNotHeld: an id has no slot.
    """
    x = torch.from_numpy(rows.hidden)
    values = torch.zeros(x.shape, dtype=torch.int32)
    saturated = torch.zeros(x.shape[0], dtype=torch.bool)
    limit = fixed_point.limit(experts.top_k)
    exponents = rows.scale_exponents.tolist()
    for row, (ids, weights) in enumerate(zip(rows.expert_ids.tolist(), rows.weights.tolist(), strict=True)):
        for expert, weight in zip(ids, weights, strict=True):
            if expert == -1:
                continue
            slot = int(experts.slots[expert]) if 0 <= expert < experts.slots.shape[0] else -1
            if slot < 0:
                raise kernels.ExpertNotHeld(f"expert {expert} is not held here")
            product = _expert(experts, slot, x[row : row + 1])[0] * weight
            steps, fits = _on_grid(product, exponents[row], limit)
            values[row] += steps
            saturated[row] |= ~fits
    return PartialSum(values.numpy(), saturated.numpy())


def _expert(experts: kernels.ExpertWeights, slot: int, x: Tensor) -> Tensor:
    """One expert's output for x [1, H]."""
    gate = x @ experts.gate.data[slot].float().T
    up = x @ experts.up.data[slot].float().T
    activation = torch.nn.functional.silu(gate)
    if experts.limit > 0:
        activation, up = activation.clamp(max=experts.limit), up.clamp(-experts.limit, experts.limit)
    return (activation * up) @ experts.down.data[slot].float().T


def _on_grid(product: Tensor, exponent: int, limit: int) -> tuple[Tensor, Tensor]:
    """product [H] in whole steps of 2^exponent, int32, and whether all of it fits the limit."""
    # Two factors, because 2^-exponent itself may be no float32.
    half = exponent // 2
    value = torch.round(product * 2.0**-half * 2.0 ** (half - exponent))
    inside = value.abs() <= limit
    return torch.where(inside, value, 0.0).to(torch.int32), inside.all()
