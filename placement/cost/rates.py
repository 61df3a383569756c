"""From a problem's devices and workload to seconds for each expert, pair, row and message."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from placement.cost.head import shared_expert_s
from placement.cost.roofline import ExpertRates
from placement.given.cluster_spec import NO_OVERHEADS
from placement.given.kernel_rates import rates_of
from placement.given.problem import PlanningDevice, PlanningProblem
from placement.message_size import message_size
from placement.plan import LOCAL_WORKER
from placement.weight_format import planned_format
from placement.workload import Workload


def expert_rates(problem: PlanningProblem) -> ExpertRates:
    """The rates of a problem's devices for its workload."""
    shape, workload, devices = problem.shape, problem.workload, problem.devices
    message = message_size(shape, problem.wires)
    row_bytes = message.request_bytes_per_row + message.reply_bytes_per_row
    is_head = [d.tier.name == LOCAL_WORKER for d in devices]
    is_local = [d.tier.worker == LOCAL_WORKER for d in devices]
    head = next((d.overheads for d, head in zip(devices, is_head, strict=True) if head), NO_OVERHEADS)
    cpu = _cpus(devices)
    fixed_s, pair_s = zip(*(_expert_line(problem, devices[index]) for index in cpu), strict=True)
    machines = {name: i for i, name in enumerate(dict.fromkeys(d.machine.name for d in devices if d.machine))}
    return ExpertRates(
        round_trip_s=np.array([d.round_trip_s for d in devices]),
        row_wire_s=np.array([row_bytes / d.link_bytes_per_s for d in devices]),
        read_s=np.array([problem.expert_bytes / d.bandwidth_bytes_per_s for d in devices]),
        compute_s=np.array(pair_s),
        busy_s=np.array(
            [shared_expert_s(d, shape, workload) if h else 0.0 for d, h in zip(devices, is_head, strict=True)]
        ),
        expert_s=np.array(fixed_s),
        request_s=np.array([d.overheads.request_s for d in devices]),
        message_s=np.array([0.0 if local else head.message_s for local in is_local]),
        message_row_s=np.array([0.0 if local else head.message_row_s for local in is_local]),
        busy_reads=np.array([float(_reads_longest(d, workload)) for d in devices]),
        machine=np.array([machines[d.machine.name] if d.machine else -1 for d in devices], dtype=np.float64),
        cores=np.array([d.cores / d.machine.cores if d.machine else 0.0 for d in devices]),
        bus=np.array(
            [d.bandwidth_bytes_per_s / d.machine.bandwidth_bytes_per_s if d.machine else 0.0 for d in devices]
        ),
        cpu=np.array(cpu, dtype=np.intp),
        box=_boxes(devices),
    )


def _boxes(devices: Sequence[PlanningDevice]) -> NDArray[np.intp]:
    """`ExpertRates.box`: devices of one worker process are reached together."""
    first: dict[str, int] = {}
    return np.array(
        [
            index if device.tier.name == LOCAL_WORKER else first.setdefault(device.tier.worker, index)
            for index, device in enumerate(devices)
        ],
        dtype=np.intp,
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


def _reads_longest(device: PlanningDevice, workload: Workload) -> bool:
    """Whether memory bounds a block of the head's weights there, not arithmetic."""
    read_s = workload.head_bits("ffn") / 8 / device.bandwidth_bytes_per_s
    multiply_s = device.multiply_s(workload.head_form("ffn"), 1, workload.tokens_per_step, read_s)
    # One row takes 1 by `row_costs`, which the sum of its two parts may exceed by rounding.
    return read_s >= multiply_s * (1 - 1e-9)


def _expert_line(problem: PlanningProblem, device: PlanningDevice) -> tuple[float, float]:
    """Seconds of `device`'s arithmetic for each distinct expert, and for each row of it.

    Kernels' rates count at the rows that an expert gets on average if all are chosen alike.
    """
    shape, form = problem.shape, problem.expert_form
    named = [] if form is None else [planned_format(name).name for name in form.split("/")]
    rows = max(1.0, problem.workload.tokens_per_step * shape.top_k / shape.num_experts)
    read_s = problem.expert_bytes / device.bandwidth_bytes_per_s
    if not named or any(rates_of(device.kernels, name) is None for name in named):
        fixed_s, row_s = device.multiply_line(None, shape.expert_parameters, rows, read_s)
        return max(fixed_s, device.overheads.expert_s), row_s
    matrix = shape.expert_parameters // len(named)
    lines = [device.multiply_line(name, matrix, rows, read_s / len(named)) for name in named]
    return sum(fixed for fixed, _ in lines), sum(row for _, row in lines)
