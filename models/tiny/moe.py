"""The sparse layer: a sigmoid router with a selection-only bias, and experts as padded batched products."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from models.tiny.config import TinyConfig

GROUP, ROUND = 48, 16


def clamped_swiglu(gate: Tensor, up: Tensor, limit: float) -> Tensor:
    """silu(gate) * up; with limit > 0 silu is cut above it and up to [-limit, limit]."""
    act = F.silu(gate)
    if limit > 0:
        act, up = act.clamp(max=limit), up.clamp(-limit, limit)
    return act * up


class FeedForward(nn.Module):
    """Dense or shared-expert FFN."""

    def __init__(self, hidden: int, inner: int, limit: float) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, inner, bias=False)
        self.up_proj = nn.Linear(hidden, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden, bias=False)
        self.limit = limit

    def forward(self, x: Tensor) -> Tensor:
        inner = clamped_swiglu(self.gate_proj(x), self.up_proj(x), self.limit)
        out: Tensor = self.down_proj(inner)
        return out


@dataclass(frozen=True, slots=True)
class Layout:
    """Where each routed row lies in a buffer of slots, experts of similar load side by side.

    Experts are ranked by load and cut into groups. A group is a rectangle [experts, capacity], padded to the
    load of its fullest expert. So a few crowded experts cause padding in their own group only.
    """

    by_load: Tensor
    """[num_experts] expert ids, fullest first."""
    groups: tuple[tuple[slice, slice, int], ...]
    """Ranks, slots and capacity of each group."""
    source: Tensor
    """[slots] token of each slot (0 in unused ones)."""
    slot: Tensor
    """[tokens, top_k] slot of each routed row."""
    load: Tensor
    """[num_experts] rows an expert has."""

    def product(self, rows: Tensor, weights: Tensor) -> Tensor:
        """Each slot's row times its expert's matrix.

        Args:
            rows: [slots, in].
            weights: [num_experts, in, out] in rank order.

        Returns:
            [slots, out].
        """
        out = rows.new_empty(rows.shape[0], weights.shape[2])
        for ranks, slots, capacity in self.groups:
            shape = (ranks.stop - ranks.start, capacity, -1)
            torch.bmm(rows[slots].view(shape), weights[ranks], out=out[slots].view(shape))
        return out

    def outer(self, left: Tensor, right: Tensor) -> Tensor:
        """Sum over each expert's slots of the outer products of two rows.

        Args:
            left, right: [slots, m] and [slots, n].

        Returns:
            [num_experts, m, n] by expert id.
        """
        out = left.new_empty(self.by_load.numel(), left.shape[1], right.shape[1])
        for ranks, slots, capacity in self.groups:
            shape = (ranks.stop - ranks.start, capacity, -1)
            out[self.by_load[ranks]] = left[slots].view(shape).transpose(1, 2) @ right[slots].view(shape)
        return out


def layout(expert_ids: Tensor, num_experts: int) -> Layout:
    """Lays routed rows out by expert.

    Args:
        expert_ids: [tokens, top_k] int64.
        num_experts: routed experts of the layer.
    """
    flat = expert_ids.flatten()
    load = torch.bincount(flat, minlength=num_experts)
    by_load = load.argsort(descending=True, stable=True)
    first = torch.empty_like(load)
    groups, used = [], 0
    for start in range(0, num_experts, GROUP):
        members = by_load[start : start + GROUP]
        # Few distinct shapes: the CPU kernels are generated, and cached, by shape.
        capacity = max(1, -(-int(load[members[0]]) // ROUND)) * ROUND
        end = used + len(members) * capacity
        first[members] = torch.arange(used, end, capacity)
        groups.append((slice(start, start + len(members)), slice(used, end), capacity))
        used = end
    order = torch.argsort(flat, stable=True)
    rank_in_expert = torch.arange(flat.numel()) - (load.cumsum(0) - load)[flat[order]]
    slot_sorted = first[flat[order]] + rank_in_expert
    slot = torch.empty_like(flat).scatter_(0, order, slot_sorted)
    source = torch.zeros(used, dtype=torch.int64).scatter_(0, slot_sorted, order // expert_ids.shape[1])
    return Layout(by_load, tuple(groups), source, slot.view_as(expert_ids), load)


class _RoutedExperts(torch.autograd.Function):
    """Weighted sum of each token's experts, with gathers only in both directions.

    Autograd's own backward of a gather is a scatter-add, several times slower on a CPU than gathering
    the top_k gradients of each token; and the gradient of a routing weight is cheaper taken in the
    experts' narrow inner dimension.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weights: Tensor, place: Layout, w_in: Tensor, w_out: Tensor, limit: float
    ) -> Tensor:
        slot = place.slot
        rows = x.index_select(0, place.source)
        gate_up = place.product(rows, w_in.index_select(0, place.by_load))
        gate, up = gate_up.chunk(2, dim=-1)
        out = place.product(clamped_swiglu(gate, up, limit), w_out.index_select(0, place.by_load))
        routed = out.index_select(0, slot.flatten()).view(*slot.shape, -1)
        ctx.save_for_backward(rows, weights, w_in, w_out, gate_up)
        ctx.place, ctx.limit = place, limit
        return torch.bmm(weights[:, None].to(x.dtype), routed)[:, 0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, weights, w_in, w_out, gate_up = ctx.saved_tensors
        place, limit = ctx.place, ctx.limit
        slots = place.slot.flatten()
        gate, up = gate_up.chunk(2, dim=-1)
        sig = gate.sigmoid()
        silu = gate * sig
        act, held = (silu.clamp(max=limit), up.clamp(-limit, limit)) if limit > 0 else (silu, up)
        inner = act * held

        slot_weight = grad.new_zeros(rows.shape[0], 1)
        slot_weight[slots, 0] = weights.flatten().to(grad.dtype)
        grad_rows = grad.index_select(0, place.source)
        grad_inner = place.product(grad_rows, w_out.index_select(0, place.by_load).transpose(1, 2))
        grad_weights = (inner * grad_inner).sum(-1, dtype=weights.dtype)[slots].view_as(weights)
        grad_w_out = place.outer(inner * slot_weight, grad_rows)
        grad_inner = grad_inner * slot_weight
        grad_gate = grad_inner * held * (sig + silu * (1 - sig))
        grad_up = grad_inner * act
        if limit > 0:
            grad_gate = grad_gate.masked_fill(silu > limit, 0.0)
            grad_up = grad_up.masked_fill(up.abs() > limit, 0.0)
        grad_gate_up = torch.cat((grad_gate, grad_up), dim=-1)
        grad_w_in = place.outer(rows, grad_gate_up)
        grad_slots = place.product(grad_gate_up, w_in.index_select(0, place.by_load).transpose(1, 2))
        grad_x = grad_slots.index_select(0, slots).view(*weights.shape, -1).sum(1)
        return grad_x, grad_weights, None, grad_w_in, grad_w_out, None


class SparseMoE(nn.Module):
    """Routed experts of one layer; the shared expert is the decoder layer's own.

    Weights are kept [experts, in, out], the order the batched products want; export turns them to the
    published [experts, out, in]. `load` holds the last batch's rows per expert for the bias update.
    """

    router_bias: Tensor
    load: Tensor

    def __init__(self, config: TinyConfig, layer: int) -> None:
        super().__init__()
        experts, hidden, inner = config.moe_num_experts, config.hidden_size, config.moe_intermediate_size
        self.gate = nn.Linear(hidden, experts, bias=False)
        self.w_in = nn.Parameter(torch.empty(experts, hidden, 2 * inner))
        self.w_out = nn.Parameter(torch.empty(experts, inner, hidden))
        self.register_buffer("router_bias", torch.zeros(experts))
        self.register_buffer("load", torch.zeros(experts), persistent=False)
        self.top_k, self.scale = config.moe_top_k, config.moe_router_scaling_factor
        self.limit = config.swiglu_limits[layer]
        self.expert_ids: Tensor | None = None

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Chooses experts by score + bias, weighs them by score alone.

        Args:
            x: [tokens, hidden].

        Returns:
            expert_ids [tokens, top_k] int64 and weights [tokens, top_k] float32.
        """
        scores = self.gate(x).float().sigmoid()
        expert_ids = (scores.detach() + self.router_bias).topk(self.top_k, dim=-1, sorted=False).indices
        chosen = scores.gather(1, expert_ids)
        return expert_ids, chosen / chosen.sum(-1, keepdim=True) * self.scale

    def forward(self, x: Tensor) -> Tensor:
        """x and the result are [tokens, hidden]."""
        expert_ids, weights = self.route(x)
        place = layout(expert_ids, self.router_bias.numel())
        self.load, self.expert_ids = place.load.float(), expert_ids
        experts = self.w_in, self.w_out, self.limit
        out: Tensor = _RoutedExperts.apply(x, weights, place, *experts)  # type: ignore[no-untyped-call]
        return out
