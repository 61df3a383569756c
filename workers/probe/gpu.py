"""Graphics cards by what torch sees of them. Nobody has tried this on one yet: no run computes there."""

from __future__ import annotations

import torch

from placement.given.probe_figures import Gpu
from workers.probe.clocks import usual_s

_FAR_BYTES = 512 << 20
_SIDE = 4096


def gpus(seconds: float) -> tuple[Gpu, ...]:
    """Each one that has a gigabyte free; none where torch has no CUDA. `seconds`: for each."""
    found = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, total = torch.cuda.mem_get_info(index)
        if free < 2 * _FAR_BYTES:
            continue
        found.append(_measure(index, free, total, seconds / 3))
        torch.cuda.empty_cache()
    return tuple(found)


def busy_share() -> float | None:
    """Of the busiest GPU now; None without one, or where its driver's library for this is not installed."""
    if not torch.cuda.is_available():
        return None
    try:
        shares = [torch.cuda.utilization(index) / 100 for index in range(torch.cuda.device_count())]
    except (ImportError, RuntimeError):
        return None
    return max(shares, default=None)


def _measure(index: int, free: int, total: int, seconds: float) -> Gpu:
    device = torch.device("cuda", index)
    there = torch.ones(_FAR_BYTES // 4, device=device)
    here = torch.ones(_FAR_BYTES // 8 // 4).pin_memory()
    square = torch.ones(_SIDE, _SIDE, device=device, dtype=torch.bfloat16)

    def read() -> None:
        there.sum()
        torch.cuda.synchronize(device)

    def copy() -> None:
        there[: len(here)].copy_(here)
        torch.cuda.synchronize(device)

    def multiply() -> None:
        square @ square
        torch.cuda.synchronize(device)

    return Gpu(
        name=torch.cuda.get_device_name(index)[:200],
        memory_bytes=total,
        free_bytes=free,
        bandwidth_bytes_per_s=_FAR_BYTES / usual_s(read, seconds),
        copy_bytes_per_s=here.nbytes / usual_s(copy, seconds),
        flops_per_s=2 * _SIDE**3 / usual_s(multiply, seconds),
    )
