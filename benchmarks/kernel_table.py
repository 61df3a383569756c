"""How fast matrices of each quantised type are multiplied, beside what memory and the kernel itself allow.

    python -m benchmarks.kernel_table [--threads 2] [--instruction-set avx2] [--forms q4_k,q6_k | all]

A row of the table is one type and one number of activation rows, on matrices of 4,096 columns:

    memory     GB/s of weights far larger than the caches
    kernel     the same from cache, where only the processor holds it up, by one thread times the threads
    floor      the longer of bytes / read rate and operations / kernel rate: what both terms allow
    share      floor / measured
    S-MBU      bytes / time / read rate
    GFLOP/s    of the run from memory
    torch      torch's float32 product of the same shape / ours, in time

The read rate is the best of a few multi-threaded loops over the same number of bytes, in the same run.
"""

from __future__ import annotations

import argparse
from functools import partial

from orchestrator import kernels  # before torch: it sets what torch reads when loaded

# isort: split
import numpy as np
import torch

from benchmarks.kernels import best_s
from placement.weight_format import FORMATS, WeightFormat
from workers.kernels import Matrices, Matrix, instruction_set, use_instruction_set

COLUMNS = 4096
MEMORY_BYTES = 160 << 20  # many times the largest cache
FEW, MORE = 48, 144  # weight rows that stay in the second-level cache
ROWS = (1, 2, 4, 8)
FAST = ("q4_k", "q5_k", "q6_k", "q8_0", "q3_k", "iq4_xs")


def random_matrix(form: WeightFormat, rows: int) -> Matrix:
    """Weights of random bits: no kernel here takes a different time for other bits."""
    row_bytes = COLUMNS // form.block_weights * form.block_bytes
    bits = np.random.default_rng(0).integers(0, 256, (rows, row_bytes), dtype=np.uint8)
    return Matrix(form, rows, COLUMNS, torch.from_numpy(bits))


def read_rate() -> float:
    """GB/s of weights that only pass by, with the threads in use."""
    plain = torch.ones(MEMORY_BYTES // 4 // COLUMNS, COLUMNS)
    narrow, x = plain.bfloat16(), torch.ones(1, COLUMNS)
    rates = [
        plain.nbytes / best_s(plain.sum, 7),
        plain.nbytes / best_s(partial(kernels.linear, x, plain), 7),
        narrow.nbytes / best_s(partial(kernels.linear, x, narrow), 7),
    ]
    return max(rates) / 1e9


def cache_s_per_row(form: WeightFormat, num_rows: int) -> float:
    """Seconds that one thread takes for one weight row from cache; what every call costs is left out."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    x = torch.randn(num_rows, COLUMNS)
    few, more = (
        best_s(partial(kernels.linear, x, Matrices.of(random_matrix(form, rows))), 60) for rows in (FEW, MORE)
    )
    torch.set_num_threads(threads)
    return (more - few) / (MORE - FEW)


def table(forms: list[WeightFormat], threads: int, read: float) -> None:
    print("form     rows  memory  kernel   floor us  measured us  share  S-MBU  GFLOP/s  torch")
    rows_of_torch = 4096
    wide = torch.randn(rows_of_torch, COLUMNS)
    torch_s = {
        num_rows: best_s(partial(torch.mm, torch.randn(num_rows, COLUMNS), wide.T), 4) / rows_of_torch
        for num_rows in ROWS
    }
    for form in forms:
        row_bytes = COLUMNS // form.block_weights * form.block_bytes
        weight_rows = MEMORY_BYTES // row_bytes
        weight_gb = weight_rows * row_bytes / 1e9
        weight = Matrices.of(random_matrix(form, weight_rows))
        for num_rows in ROWS:
            x = torch.randn(num_rows, COLUMNS)
            measured = best_s(partial(kernels.linear, x, weight), 7)
            arithmetic = cache_s_per_row(form, num_rows) / threads * weight_rows
            reading = weight_gb / read
            floor = max(reading, arithmetic)
            speed = 2 * num_rows * weight_rows * COLUMNS / measured / 1e9
            torch_ratio = torch_s[num_rows] * weight_rows / measured
            print(
                f"{form.name:<8} {num_rows:>4}  {weight_gb / measured:6.1f}  {weight_gb / arithmetic:6.1f}"
                f"  {floor * 1e6:9.0f}  {measured * 1e6:11.0f}  {floor / measured:5.0%}"
                f"  {reading / measured:5.0%}  {speed:7.1f}  {torch_ratio:5.2f}",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--instruction-set", default=instruction_set())
    parser.add_argument("--forms", default=",".join(FAST))
    arguments = parser.parse_args()
    quantised = {name: form for name, form in FORMATS.items() if form.rounding_block}
    names = list(quantised) if arguments.forms == "all" else arguments.forms.split(",")
    unknown = [name for name in names if name not in quantised]
    if unknown:
        parser.error(f"--forms: {unknown[0]} is none of {', '.join(quantised)}, all")
    if arguments.threads < 1:
        parser.error(f"--threads: expected 1 or more, found {arguments.threads}")
    torch.set_num_threads(arguments.threads)
    if not use_instruction_set(arguments.instruction_set):
        parser.error(f"--instruction-set: this machine has no {arguments.instruction_set}")
    with torch.inference_mode():
        read = read_rate()
        print(f"{instruction_set()}, {arguments.threads} threads, read rate {read:.1f} GB/s")
        table([quantised[name] for name in names], arguments.threads, read)


if __name__ == "__main__":
    main()
