"""A box's rates for choosing which experts a prefill pass copies into VRAM (placement/streaming.py)."""

from __future__ import annotations

from placement.given.kernel_rates import KernelRates, rates_of
from placement.given.problem import PlanningDevice, PlanningProblem
from placement.streaming import ExpertSeconds, StreamingRates
from placement.weight_format import planned_format


def streaming_rates(
    problem: PlanningProblem, gpu: PlanningDevice, ram: PlanningDevice
) -> StreamingRates | None:
    """From a device of a GPU and one of the same box's RAM; None where the GPU states no host link."""
    if gpu.host_link_bytes_per_s is None:
        return None
    return StreamingRates(
        copy_s=problem.expert_bytes / gpu.host_link_bytes_per_s,
        cpu=expert_seconds(problem, ram),
        gpu=expert_seconds(problem, gpu),
    )


def expert_seconds(problem: PlanningProblem, device: PlanningDevice) -> ExpertSeconds:
    """One expert on a device by its rows, by its kernels' rates where they name all of the expert's forms."""
    shape, read_s = problem.shape, problem.expert_bytes / device.bandwidth_bytes_per_s
    kernels = _kernels(problem, device)
    if not kernels:
        row_s = 2 * shape.expert_parameters / device.ffn_flops_per_s
        return ExpertSeconds.line(device.overheads.expert_s, row_s, read_s)
    flops = 2 * (shape.expert_parameters // len(kernels))
    rows = sorted({count for kernel in kernels for count in kernel.rows})
    return ExpertSeconds(
        rows=tuple(float(count) for count in rows),
        seconds=tuple(flops * sum(kernel.row_flop_s(count) for kernel in kernels) for count in rows),
        row_s=flops * sum(1 / kernel.flops_per_s[-1] for kernel in kernels),
        read_s=read_s,
    )


def _kernels(problem: PlanningProblem, device: PlanningDevice) -> list[KernelRates]:
    """Of each of the expert's matrices, or of one form for all; empty where one of them is unknown."""
    if problem.expert_form is None:
        return []
    names = [planned_format(name).name for name in problem.expert_form.split("/")]
    kernels = [rates for name in names if (rates := rates_of(device.kernels, name)) is not None]
    return kernels if len(kernels) == len(names) else []
