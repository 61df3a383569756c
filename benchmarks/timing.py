"""How long a call takes, and how fast this machine reads memory: what every benchmark of kernels needs."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from orchestrator import kernels  # before torch: it sets what torch reads when loaded

# isort: split
import torch
from torch import Tensor

from workers.kernels import Matrices, Matrix

FAR_BYTES = 192 << 20
"""More than caches hold, many times over."""
_COLUMNS = 4096
# Weights that stay in a second-level cache of 512 kB with all that goes with them.
_FEW_BYTES, _MORE_BYTES = 64 << 10, 288 << 10


def best_s(call: Callable[[], object], seconds: float = 0.1, turns: int = 5) -> float:
    """The quickest of the turns that fit `seconds`, `turns` at least, after one that does not count.

    What else the machine does only adds. With one thread, processor time counts, so that it adds less.
    """
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    call()
    best, done, until = float("inf"), 0, time.perf_counter() + seconds
    while done < turns or time.perf_counter() < until:
        started = clock()
        call()
        best = min(best, clock() - started)
        done += 1
    return best


def read_rate() -> float:
    """Bytes a second that come from memory when they only pass by, with the threads in use.

    The quickest of torch's sum and of our kernels with one row, on float32 and bfloat16.
    """
    wide = torch.ones(FAR_BYTES // 4 // _COLUMNS, _COLUMNS)
    narrow, x = torch.ones(2 * len(wide), _COLUMNS, dtype=torch.bfloat16), torch.ones(1, _COLUMNS)
    calls: list[Callable[[], object]] = [wide.sum, partial(kernels.linear, x, wide)]
    calls.append(partial(kernels.linear, x, narrow))
    return FAR_BYTES / min(best_s(call, 0.3) for call in calls)


def cache_s_per_row(matrix: Matrix, x: Tensor) -> float:
    """Seconds that one thread takes for one weight row from cache; what every call costs is left out."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    row_bytes = matrix.form.row_bytes(matrix.columns)
    few, more = (max(4, size // row_bytes // 4 * 4) for size in (_FEW_BYTES, _MORE_BYTES))
    few_s, more_s = (
        best_s(partial(kernels.linear, x, Matrices.of(_first_rows(matrix, rows)))) for rows in (few, more)
    )
    torch.set_num_threads(threads)
    return (more_s - few_s) / (more - few)


def _first_rows(matrix: Matrix, rows: int) -> Matrix:
    return Matrix(matrix.form, rows, matrix.columns, matrix.data[:rows].clone())
