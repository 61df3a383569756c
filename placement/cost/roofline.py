"""How long a step takes: the roofline of each device, a round trip and the wire for each box asked.

docs/cost-model.md derives the formulas. Every rate comes from the cluster file; none is written here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import numpy as np
from numpy.typing import NDArray

from placement.errors import InputError
from placement.given.cluster_spec import NO_OVERHEADS, Overheads
from placement.given.problem import PlanningDevice, PlanningProblem
from placement.message_size import message_size
from placement.model_shape import AttentionShape, ModelShape
from placement.plan import LOCAL_WORKER
from placement.workload import Workload

Counts = NDArray[np.integer] | NDArray[np.floating]
"""Whole where they were counted, fractions where they are expected."""


def _absent() -> NDArray[np.float64]:
    """Of fields that nobody gave: nothing measured, nothing shared."""
    return np.empty(0)


@dataclass(frozen=True, slots=True, eq=False)
class ExpertRates:
    """Seconds that one MoE layer costs each device; float64 [num_devices] each.

    Attributes:
        round_trip_s: once, if the device is asked at all.
        row_wire_s: for each row sent to it and answered.
        read_s: for each distinct expert read from its memory.
        compute_s: for each (row, expert) pair multiplied.
        expert_s: for each distinct expert on top of its pairs, where arithmetic takes longer than reading.
        busy_s: before it can start: on the head's own device the shared expert, which reads the same memory.
        request_s: its software, once if it is asked at all.
        message_s: the head's software, once if it is asked at all, before or after what others do meanwhile.
        message_row_s: the head's software for each row sent to it and answered, likewise.
        busy_reads: 1 where memory bounds `busy_s`, 0 where arithmetic does.
        machine: number of the machine whose cores and memory it shares, -1 where it shares none.
        cores: share of that machine's cores that it uses while it computes.
        bus: share of that machine's memory bandwidth that it takes while it reads.
        cpu: int, the device that computes its experts: of a disk the RAM's beside it, else itself.
    """

    round_trip_s: NDArray[np.float64]
    row_wire_s: NDArray[np.float64]
    read_s: NDArray[np.float64]
    compute_s: NDArray[np.float64]
    busy_s: NDArray[np.float64]
    expert_s: NDArray[np.float64] = field(default_factory=_absent)
    request_s: NDArray[np.float64] = field(default_factory=_absent)
    message_s: NDArray[np.float64] = field(default_factory=_absent)
    message_row_s: NDArray[np.float64] = field(default_factory=_absent)
    busy_reads: NDArray[np.float64] = field(default_factory=_absent)
    machine: NDArray[np.float64] = field(default_factory=_absent)
    cores: NDArray[np.float64] = field(default_factory=_absent)
    bus: NDArray[np.float64] = field(default_factory=_absent)
    cpu: NDArray[np.intp] = field(default_factory=lambda: np.empty(0, dtype=np.intp))

    def __post_init__(self) -> None:
        if not self.cpu.size:
            object.__setattr__(self, "cpu", np.arange(len(self.read_s)))
        for rate in fields(self):
            if not getattr(self, rate.name).size:
                absent = np.full(np.shape(self.read_s), -1.0 if rate.name == "machine" else 0.0)
                object.__setattr__(self, rate.name, absent)


def expert_rates(problem: PlanningProblem) -> ExpertRates:
    """The rates of a problem's devices for its workload."""
    shape, workload, devices = problem.shape, problem.workload, problem.devices
    message = message_size(shape, workload.bytes_per_activation)
    row_bytes = message.request_bytes_per_row + message.reply_bytes_per_row
    expert_flops = 2 * shape.expert_parameters
    is_head = [d.tier.name == LOCAL_WORKER for d in devices]
    head = next((d.overheads for d, head in zip(devices, is_head, strict=True) if head), NO_OVERHEADS)
    cpu = _cpus(devices)
    computing = [devices[index] for index in cpu]
    machines = {name: i for i, name in enumerate(dict.fromkeys(d.machine.name for d in devices if d.machine))}
    return ExpertRates(
        round_trip_s=np.array([d.round_trip_s for d in devices]),
        row_wire_s=np.array([row_bytes / d.link_bytes_per_s for d in devices]),
        read_s=np.array([problem.expert_bytes / d.bandwidth_bytes_per_s for d in devices]),
        compute_s=np.array([expert_flops / d.ffn_flops_per_s for d in computing]),
        busy_s=np.array(
            [shared_expert_s(d, shape, workload) if h else 0.0 for d, h in zip(devices, is_head, strict=True)]
        ),
        expert_s=np.array([d.overheads.expert_s for d in computing]),
        request_s=np.array([d.overheads.request_s for d in devices]),
        message_s=np.array([0.0 if here else head.message_s for here in is_head]),
        message_row_s=np.array([0.0 if here else head.message_row_s for here in is_head]),
        busy_reads=np.array([float(_reads_longest(d, workload)) for d in devices]),
        machine=np.array([machines[d.machine.name] if d.machine else -1 for d in devices], dtype=np.float64),
        cores=np.array([d.cores / d.machine.cores if d.machine else 0.0 for d in devices]),
        bus=np.array(
            [d.bandwidth_bytes_per_s / d.machine.bandwidth_bytes_per_s if d.machine else 0.0 for d in devices]
        ),
        cpu=np.array(cpu, dtype=np.intp),
    )


def _cpus(devices: Sequence[PlanningDevice]) -> list[int]:
    """The device that computes each one's experts: of a disk the first RAM device of its box, if any."""
    of_node: dict[str, int] = {}
    for index, device in enumerate(devices):
        if device.tier.kind == "ram":
            of_node.setdefault(device.tier.node, index)
    return [
        of_node.get(device.tier.node, index) if device.tier.kind == "disk" else index
        for index, device in enumerate(devices)
    ]


def device_seconds(
    rates: ExpertRates,
    rows: Counts,
    distinct: Counts,
    pairs: Counts,
) -> NDArray[np.float64]:
    """When each device's part of one layer is back if it had its machine alone: float64 [..., num_devices].

    round trip (if asked) + rows x wire + the larger of distinct experts x read and pairs x compute
    (roofline; Williams, Waterman and Patterson, CACM 52, 2009), behind what keeps the device busy.

    Args:
        rows: int [..., num_devices], tokens that need the device.
        distinct: experts it must read.
        pairs: (token, expert) pairs it computes.
    """
    seconds: NDArray[np.float64] = (
        rates.busy_s + wire_seconds(rates, rows) + expert_seconds(rates, distinct, pairs)
    )
    return seconds


def wire_seconds(rates: ExpertRates, rows: Counts) -> NDArray[np.float64]:
    """Round trip and bytes under way: float64 [..., num_devices]."""
    seconds: NDArray[np.float64] = (rows > 0) * rates.round_trip_s + rows * rates.row_wire_s
    return seconds


def messages_seconds(rates: ExpertRates, rows: Counts) -> NDArray[np.float64]:
    """The head's software for a layer's requests and answers, one after another: float64 [...]."""
    seconds: NDArray[np.float64] = (rows > 0) @ rates.message_s + rows @ rates.message_row_s
    return seconds


def expert_seconds(rates: ExpertRates, distinct: Counts, pairs: Counts) -> NDArray[np.float64]:
    """How long each device works on its experts of one layer, alone: float64 [..., num_devices]."""
    seconds: NDArray[np.float64] = (pairs > 0) * rates.request_s + np.maximum(
        distinct * rates.read_s, arithmetic_seconds(rates, distinct, pairs)
    )
    return seconds


def arithmetic_seconds(rates: ExpertRates, distinct: Counts, pairs: Counts) -> NDArray[np.float64]:
    """How long each device takes for a layer's experts where arithmetic bounds it: the shape of `pairs`."""
    seconds: NDArray[np.float64] = pairs * rates.compute_s
    # Most cluster files measure no `expert_s`, and the arrays are long.
    return seconds + distinct * rates.expert_s if rates.expert_s.any() else seconds


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
    trunk, drafts = shape.attention[: shape.num_hidden_layers], shape.attention[shape.num_hidden_layers :]
    overheads = device.overheads
    mtp_s = 0.0
    for i in range(min(workload.drafts, shape.num_mtp_layers)):
        slots = workload.num_sequences * (1 + workload.accepted_drafts + i)
        mtp_s += weights_s(shape.mtp_layer_parameters(i) - shape.lm_head_parameters, slots, workload, device)
        mtp_s += weights_s(shape.lm_head_parameters, workload.num_sequences, workload, device)
        mtp_s += _kv_cache_s(drafts[i], workload, device, rows=slots)
        mtp_s += overheads.draft_s + slots * overheads.row_s
    return HeadSeconds(
        attention_s=sum(weights_s(a.parameters(shape.hidden_size), rows, workload, device) for a in trunk),
        kv_cache_s=sum(_kv_cache_s(a, workload, device, rows=rows) for a in trunk),
        router_s=shape.num_moe_layers * weights_s(shape.router_parameters, rows, workload, device),
        dense_ffn_s=shape.num_dense_layers * weights_s(shape.dense_ffn_parameters, rows, workload, device),
        lm_head_s=weights_s(shape.lm_head_parameters, rows, workload, device),
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
    rows = workload.tokens_per_step
    router_s = weights_s(shape.router_parameters, rows, workload, device)
    dense_ffn_s = weights_s(shape.dense_ffn_parameters, rows, workload, device)
    overheads = device.overheads
    software_s = layer_software_s(overheads, rows)
    return np.array(
        [
            weights_s(attention.parameters(shape.hidden_size), rows, workload, device)
            + _kv_cache_s(attention, workload, device, rows=rows)
            + (router_s + overheads.moe_layer_s if layer in shape.moe_layers else dense_ffn_s)
            + software_s
            for layer, attention in enumerate(shape.attention[: shape.num_hidden_layers])
        ]
    )


def layer_software_s(overheads: Overheads, rows: int) -> float:
    """The head's software in a decoder layer, dispatch left out."""
    return overheads.layer_s + rows * overheads.row_s + (overheads.batch_s if rows > 1 else 0.0)


def weights_s(parameters: int, num_rows: float, workload: Workload, device: PlanningDevice) -> float:
    """A block of weights of the head's own: read once, multiplied with every row."""
    num_bytes = parameters * workload.head_bits_per_weight / 8
    return _roofline(
        num_bytes, 2 * parameters * num_rows, device.bandwidth_bytes_per_s, device.ffn_flops_per_s
    )


def shared_expert_s(
    device: PlanningDevice, shape: ModelShape, workload: Workload, rows: int | None = None
) -> float:
    num_rows = workload.tokens_per_step if rows is None else rows
    return weights_s(shape.shared_expert_parameters, num_rows, workload, device)


def prefill_attention_s(
    attention: AttentionShape, workload: Workload, device: PlanningDevice, num_tokens: int
) -> float:
    """Causal attention: row t sees context + t keys, on sliding layers at most the window."""
    seen = workload.context + np.arange(1, num_tokens + 1)
    if attention.is_sliding:
        seen = np.minimum(seen, attention.window)
    flops = 4.0 * float(seen.sum()) * attention.num_heads * attention.head_dim
    num_bytes = float(seen.max()) * attention.kv_values_per_position() * workload.bytes_per_kv_value
    return _attention_roofline(num_bytes, flops, device)


def _kv_cache_s(attention: AttentionShape, workload: Workload, device: PlanningDevice, rows: float) -> float:
    """Reading keys and values, or multiplying them: 2 FLOPs a value for q.k, 2 for the weighted sum."""
    keys = min(workload.context, attention.window) if attention.is_sliding else workload.context
    num_bytes = (
        workload.num_sequences * keys * attention.kv_values_per_position() * workload.bytes_per_kv_value
    )
    flops = 4 * rows * keys * attention.num_heads * attention.head_dim
    return _attention_roofline(num_bytes, flops, device)


def _attention_roofline(num_bytes: float, flops: float, device: PlanningDevice) -> float:
    rate = device.attention_flops_per_s or device.ffn_flops_per_s
    return _roofline(num_bytes, flops, device.bandwidth_bytes_per_s, rate)


def _roofline(num_bytes: float, flops: float, bytes_per_s: float, flops_per_s: float) -> float:
    return max(num_bytes / bytes_per_s, flops / flops_per_s)


def _reads_longest(device: PlanningDevice, workload: Workload) -> bool:
    """Whether memory bounds a block of the head's weights there, not arithmetic."""
    read_s = workload.head_bits_per_weight / 8 / device.bandwidth_bytes_per_s
    return read_s >= 2 * workload.tokens_per_step / device.ffn_flops_per_s
