"""What a step costs the head itself: attention, KV cache, routers, dense layers, lm_head, MTP, software."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from placement.cost.roofline import roofline_s
from placement.errors import InputError
from placement.given.cluster_spec import Overheads
from placement.given.kernel_rates import ATTENTION, rates_of
from placement.given.problem import PlanningDevice, PlanningProblem
from placement.kv_size import KvShape
from placement.model_shape import AttentionShape, ModelShape
from placement.workload import HeadPart, Workload


@dataclass(frozen=True, slots=True)
class HeadSeconds:
    """What one step costs the head itself wherever experts live; shared experts count in the MoE layers."""

    attention_s: float
    kv_cache_s: float
    router_s: float
    dense_ffn_s: float
    lm_head_s: float
    mtp_s: float
    layer_overhead_s: float = 0.0
    pass_overhead_s: float = 0.0

    @property
    def total_s(self) -> float:
        parts = (
            self.attention_s,
            self.kv_cache_s,
            self.router_s,
            self.dense_ffn_s,
            self.lm_head_s,
            self.mtp_s,
            self.layer_overhead_s,
            self.pass_overhead_s,
        )
        return sum(parts)


def head_device(problem: PlanningProblem) -> PlanningDevice:
    """The device the head computes on.

    Raises:
        InputError: the head's node has none, so nobody knows how fast it is.
    """
    if problem.head is None:
        raise InputError(
            "the head's node has no device, so its speed is unknown: give it one in the cluster file "
            "(memory_bytes may equal reserved_bytes)"
        )
    return problem.devices[problem.head]


def head_seconds(problem: PlanningProblem) -> HeadSeconds:
    """Attention, KV cache, routers, dense layers, lm_head and MTP layers of one decode step.

    Each part is the larger of its bytes / bandwidth and its FLOPs / rate. Weights are read once a step
    for all rows, the KV cache once a sequence. MTP layers run one after another: layer i takes in what the
    step verified and computes again the i slots that hung on drafts.
    """
    shape, workload, device = problem.shape, problem.workload, head_device(problem)
    rows = workload.tokens_per_step
    trunk = shape.attention[: shape.num_hidden_layers]
    overheads = device.overheads
    mtp_s = 0.0
    for i in range(min(workload.drafts, shape.num_mtp_layers)):
        for part_s in _mtp_head_parts_s(shape, i, workload, device):
            mtp_s += part_s
    return HeadSeconds(
        attention_s=sum(
            weights_s("attention", a.parameters(shape.hidden_size), rows, workload, device) for a in trunk
        ),
        kv_cache_s=sum(_kv_cache_s(a, workload, device, rows=rows) for a in trunk),
        router_s=shape.num_moe_layers * weights_s("router", shape.router_parameters, rows, workload, device),
        dense_ffn_s=shape.num_dense_layers
        * weights_s("ffn", shape.dense_ffn_parameters, rows, workload, device),
        lm_head_s=weights_s("output", shape.lm_head_parameters, rows, workload, device),
        mtp_s=mtp_s,
        layer_overhead_s=shape.num_hidden_layers * layer_software_s(overheads, rows)
        + shape.num_moe_layers * overheads.moe_layer_s,
        pass_overhead_s=overheads.pass_s,
    )


def head_layer_seconds(problem: PlanningProblem) -> NDArray[np.float64]:
    """The same step layer by layer: float64 [num_hidden_layers], without shared experts.

    Attention, KV cache, the router or the dense FFN, and their software; with lm_head, MTP layers and the
    software of a pass they add up to `head_seconds`.
    """
    shape, workload, device = problem.shape, problem.workload, head_device(problem)
    return np.array(
        [decoder_layer_s(shape, layer, workload, device) for layer in range(shape.num_hidden_layers)]
    )


def decoder_layer_s(shape: ModelShape, layer: int, workload: Workload, device: PlanningDevice) -> float:
    """One decoder layer of the head on a device in a decode step, without the shared expert."""
    rows, attention, overheads = workload.tokens_per_step, shape.attention[layer], device.overheads
    if layer in shape.moe_layers:
        ffn_s = weights_s("router", shape.router_parameters, rows, workload, device) + overheads.moe_layer_s
    else:
        ffn_s = weights_s("ffn", shape.dense_ffn_parameters, rows, workload, device)
    return (
        weights_s("attention", attention.parameters(shape.hidden_size), rows, workload, device)
        + _kv_cache_s(attention, workload, device, rows=rows)
        + ffn_s
        + layer_software_s(overheads, rows)
    )


def mtp_head_s(shape: ModelShape, index: int, workload: Workload, device: PlanningDevice) -> float:
    """MTP layer `index` (0 first) with its own head, on a device in a decode step."""
    return sum(_mtp_head_parts_s(shape, index, workload, device))


def _mtp_head_parts_s(
    shape: ModelShape, index: int, workload: Workload, device: PlanningDevice
) -> tuple[float, ...]:
    slots = workload.num_sequences * (1 + workload.accepted_drafts + index)
    attention = shape.attention[shape.num_hidden_layers + index]
    return (
        mtp_weights_s(shape, index, slots, workload, device),
        weights_s("output", shape.lm_head_parameters, workload.num_sequences, workload, device),
        _kv_cache_s(attention, workload, device, rows=slots),
        device.overheads.draft_s + slots * device.overheads.row_s,
    )


def layer_software_s(overheads: Overheads, rows: int) -> float:
    """The head's software in a decoder layer, dispatch left out."""
    return overheads.layer_s + rows * overheads.row_s + (overheads.batch_s if rows > 1 else 0.0)


def weights_s(
    part: HeadPart, parameters: int, num_rows: float, workload: Workload, device: PlanningDevice
) -> float:
    """A block of weights of the head's own: read once, multiplied with every row."""
    read_s = parameters * workload.head_bits(part) / 8 / device.bandwidth_bytes_per_s
    return max(read_s, device.multiply_s(workload.head_form(part), parameters, num_rows, read_s))


def mtp_weights_s(
    shape: ModelShape, index: int, num_rows: float, workload: Workload, device: PlanningDevice
) -> float:
    """MTP layer `index` (0 first) without its own head."""
    attention = shape.attention[shape.num_hidden_layers + index].parameters(shape.hidden_size)
    others = shape.mtp_layer_parameters(index) - shape.lm_head_parameters - attention
    return weights_s("attention", attention, num_rows, workload, device) + weights_s(
        "ffn", others, num_rows, workload, device
    )


def shared_expert_s(
    device: PlanningDevice, shape: ModelShape, workload: Workload, rows: int | None = None
) -> float:
    num_rows = workload.tokens_per_step if rows is None else rows
    return weights_s("ffn", shape.shared_expert_parameters, num_rows, workload, device)


def prefill_attention_s(
    attention: AttentionShape, workload: Workload, device: PlanningDevice, num_tokens: int
) -> float:
    """Causal attention: row t sees context + t keys, on sliding layers at most the window."""
    seen = workload.context + np.arange(1, num_tokens + 1)
    if attention.is_sliding:
        seen = np.minimum(seen, attention.window)
    flops = 4.0 * float(seen.sum()) * attention.num_heads * attention.head_dim
    num_bytes = float(seen.max()) * KvShape.of(attention, workload.kv_form).position_bytes
    return _attention_roofline_s(num_bytes, flops, num_tokens, device)


def _kv_cache_s(attention: AttentionShape, workload: Workload, device: PlanningDevice, rows: float) -> float:
    """Reading keys and values, or multiplying them: 2 FLOPs a value for q.k, 2 for the weighted sum."""
    keys = min(workload.context, attention.window) if attention.is_sliding else workload.context
    num_bytes = workload.num_sequences * keys * KvShape.of(attention, workload.kv_form).position_bytes
    flops = 4 * rows * keys * attention.num_heads * attention.head_dim
    return _attention_roofline_s(num_bytes, flops, rows / workload.num_sequences, device)


def _attention_roofline_s(num_bytes: float, flops: float, rows: float, device: PlanningDevice) -> float:
    """`rows`: of each sequence."""
    rate = device.attention_flops_per_s or device.ffn_flops_per_s
    kernel = rates_of(device.kernels, ATTENTION)
    if kernel is not None:
        rate = rows / kernel.row_flop_s(rows)
    bytes_per_s = device.attention_bandwidth_bytes_per_s or device.bandwidth_bytes_per_s
    return roofline_s(num_bytes, flops, bytes_per_s, rate)
