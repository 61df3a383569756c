"""The routed experts' feed-forward: on the CPU by the native kernels, elsewhere by torch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from transport.expert_rows import ExpertRows
from workers import fixed_point, kernels
from workers.fixed_point import PartialSum


@dataclass(frozen=True, slots=True, eq=False)
class ExpertWeights:
    """Some experts of one layer, on one device.

    Attributes:
        slots: int32 [E] on the CPU: where each expert of the layer lies in the matrices, -1 for not here.
        gate, up: [n, I, H], float32 or bfloat16.
        down: [n, H, I].
        limit: the SwiGLU clamp, 0 for none.
    """

    slots: Tensor
    gate: Tensor
    up: Tensor
    down: Tensor
    limit: float


def partial_sum(experts: ExpertWeights, rows: ExpertRows, top_k: int) -> PartialSum:
    """Sum of each row's weighted expert outputs on the row's fixed-point grid.

    On the CPU the bits are the same on every machine. Other devices compute each row by itself with calls
    of one shape, so a row does not depend on its neighbours, but their bits differ from the CPU's.

    Args:
        rows: with float32 `hidden`.
        top_k: the model's experts per token, at least as many as a row has.

    Raises:
        ExpertNotHeld: an id has no slot.
    """
    if experts.gate.device.type == "cpu":
        return PartialSum(
            *kernels.moe_partial_sum(
                rows, experts.slots, experts.gate, experts.up, experts.down, experts.limit, top_k
            )
        )
    return torch_partial_sum(experts, rows, top_k)


def torch_partial_sum(experts: ExpertWeights, rows: ExpertRows, top_k: int) -> PartialSum:
    """`partial_sum` in plain torch on the experts' own device."""
    device = experts.gate.device
    x = torch.from_numpy(rows.hidden).to(device)
    values = torch.zeros(x.shape, dtype=torch.int32, device=device)
    saturated = torch.zeros(x.shape[0], dtype=torch.bool, device=device)
    limit = fixed_point.limit(top_k)
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
    return PartialSum(values.cpu().numpy(), saturated.cpu().numpy())


def _expert(experts: ExpertWeights, slot: int, x: Tensor) -> Tensor:
    """One expert's output for x [1, H]."""
    gate = x @ experts.gate[slot].float().T
    up = x @ experts.up[slot].float().T
    activation = torch.nn.functional.silu(gate)
    if experts.limit > 0:
        activation, up = activation.clamp(max=experts.limit), up.clamp(-experts.limit, experts.limit)
    return (activation * up) @ experts.down[slot].float().T


def _on_grid(product: Tensor, exponent: int, limit: int) -> tuple[Tensor, Tensor]:
    """product [H] in whole steps of 2^exponent, int32, and whether all of it fits the limit."""
    # Two factors, because 2^-exponent itself may be no float32.
    half = exponent // 2
    value = torch.round(product * 2.0**-half * 2.0 ** (half - exponent))
    inside = value.abs() <= limit
    return torch.where(inside, value, 0.0).to(torch.int32), inside.all()
