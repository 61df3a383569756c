"""How fast matrices of each quantised type are multiplied, beside what memory, processor and others allow.

    python -m benchmarks.kernel_table [--threads 2] [--instruction-set avx2] [--forms q4_k,q6_k | all]
        [--columns 4096,1280] [--llamacpp DIR]

A row of the table is one type, one width and one number of activation rows. GB/s are of weights:

    memory     of weights far larger than the caches
    cache      of weights in the second-level cache, where only the processor holds the kernel up; by one
               thread, times the threads
    ports      what the multipliers alone would allow (benchmarks/port_bound.py), times the threads
    read us    bytes / read rate
    kernel us  operations / kernel rate from cache
    share      the longer of the two / measured
    S-MBU      bytes / measured time / read rate
    GFLOP/s    from memory
    torch      time of torch's float32 product of the same shape / ours
    llama.cpp  time of llama.cpp's product of the same matrix and rows / ours; theirs is the quicker of the
               matrix as the file has it and packed anew, as far as they can

DIR, or the variable LLAMACPP_BIN, holds llama.cpp's libraries. The read rate is measured in the same run.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from orchestrator import kernels  # before torch: it sets what torch reads when loaded

# isort: split
import numpy as np
import torch
from torch import Tensor

from benchmarks.ggml_matmul import BASE, CPU, Ggml
from benchmarks.llamacpp import VARIABLE
from benchmarks.port_bound import least_s, multiply_rates
from benchmarks.timing import FAR_BYTES, best_s, cache_s_per_row, read_rate
from placement.weight_format import FORMATS, WeightFormat
from workers.kernels import Matrices, Matrix, instruction_set, use_instruction_set
from workers.probe.random_blocks import random_blocks

ROWS = (1, 2, 4, 8)
FAST = ("q4_k", "q5_k", "q6_k", "q8_0", "q3_k", "iq4_xs")
_DRAWN_BLOCKS = 1 << 16
# Two ways of rounding activations to 8 bits may differ by so much of a result.
_MOST_DIFFERENCE = 0.05
_QUIET_S = 0.1  # until threads that spin after their work have gone to sleep
_ROUNDS = 2


@dataclass(frozen=True, slots=True)
class Bench:
    """What all rows of the table share. `multiply_rates`: of one thread."""

    threads: int
    read_bytes_per_s: float
    multiply_rates: Mapping[str, float]
    ggml: Ggml | None


def random_matrix(form: WeightFormat, rows: int, columns: int) -> Matrix:
    """Random blocks, repeated: no kernel here takes a different time for other bits.

    Torch's memory comes in small pages, as a mapped file does; numpy's would come in large ones.
    """
    count = rows * columns // form.block_weights
    drawn = random_blocks(form.name, min(count, _DRAWN_BLOCKS), 0.02, np.random.default_rng(0))
    blocks = np.resize(drawn, (count, form.block_bytes))
    return Matrix(form, rows, columns, torch.from_numpy(blocks.reshape(rows, -1)).clone())


def torch_s_per_row(x: Tensor) -> float:
    """Seconds that torch's float32 product takes for one weight row."""
    rows = FAR_BYTES // 4 // x.shape[1]
    weights = torch.ones(rows, x.shape[1])
    return best_s(partial(torch.mm, x, weights.T), 0.2) / rows


def measured_s(matrix: Matrix, x: Tensor, bench: Bench) -> tuple[float, float]:
    """Seconds of our product and of llama.cpp's, by turns; 0 for theirs where it is not at hand.

    Raises:
        RuntimeError: the results are not those of the same product.
    """
    ours = partial(kernels.linear, x, Matrices.of(matrix))
    if bench.ggml is None:
        return best_s(ours, 0.4), 0.0
    with bench.ggml.products(matrix.form.name, matrix.data.numpy(), x.numpy(), bench.threads) as theirs:
        expected = ours().numpy()
        for product in theirs:
            difference = float(np.abs(product() - expected).mean() / np.abs(expected).mean())
            if not difference < _MOST_DIFFERENCE:
                raise RuntimeError(f"{matrix.form.name}: llama.cpp's product differs by {difference:.0%}")
        times: list[tuple[float, float]] = []
        for _ in range(_ROUNDS):
            time.sleep(_QUIET_S)
            mine = best_s(ours, 0.2)
            times.append((mine, min(best_s(product, 0.2) for product in theirs)))
    return min(mine for mine, _ in times), min(other for _, other in times)


def row(matrix: Matrix, x: Tensor, torch_s: float, bench: Bench) -> str:
    """One line of the table."""
    gb = matrix.data.nbytes / 1e9
    ours, theirs = measured_s(matrix, x, bench)
    arithmetic = cache_s_per_row(matrix, x) * matrix.rows / bench.threads
    chunks = len(x) * matrix.rows * -(-matrix.columns // 256)
    ports = least_s(matrix.form.name, instruction_set(), bench.multiply_rates) * chunks / bench.threads
    reading = gb * 1e9 / bench.read_bytes_per_s
    cells = [
        f"{matrix.form.name:<8} {matrix.columns:>7} {len(x):>4} {gb / ours:>7.1f} {gb / arithmetic:>6.1f}",
        f"{gb / ports:>6.1f}" if ports else f"{'':>6}",
        f"{reading * 1e6:>8.0f} {arithmetic * 1e6:>9.0f} {ours * 1e6:>11.0f}",
        f"{max(reading, arithmetic) / ours:>6.0%} {reading / ours:>6.0%}",
        f"{2 * len(x) * matrix.rows * matrix.columns / ours / 1e9:>8.1f}",
        f"{torch_s * matrix.rows / ours:>6.2f}",
        f"{theirs / ours:>9.2f}" if theirs else "",
    ]
    return " ".join(cells).rstrip()


def table(
    forms: Sequence[WeightFormat], columns: Sequence[int], bench: Bench, show: Callable[[str], None]
) -> None:
    show(
        "type     columns rows  memory  cache  ports  read us kernel us measured us  share  S-MBU"
        "  GFLOP/s  torch llama.cpp"
    )
    for width in columns:
        each_x = [torch.randn(number, width) for number in ROWS]
        torch_s = [torch_s_per_row(x) for x in each_x]
        for form in forms:
            matrix = random_matrix(form, FAR_BYTES // form.row_bytes(width), width)
            for x, of_torch in zip(each_x, torch_s, strict=True):
                show(row(matrix, x, of_torch, bench))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--instruction-set", default=instruction_set())
    parser.add_argument("--forms", default=",".join(FAST))
    parser.add_argument("--columns", default="4096,1280", help="with commas, multiples of 256")
    parser.add_argument("--llamacpp", type=Path, metavar="DIR")
    arguments = parser.parse_args()
    quantised = {name: form for name, form in FORMATS.items() if form.rounding_block}
    names = list(quantised) if arguments.forms == "all" else arguments.forms.split(",")
    unknown = [name for name in names if name not in quantised]
    if unknown:
        parser.error(f"--forms: {unknown[0]!r} is none of {', '.join(quantised)}, all")
    columns = [int(width) if width.isdigit() else 0 for width in arguments.columns.split(",")]
    if any(width < 1 or width % 256 for width in columns):
        parser.error(f"--columns: expected multiples of 256 with commas, found {arguments.columns!r}")
    if arguments.threads < 1:
        parser.error(f"--threads: expected 1 or more, found {arguments.threads}")
    torch.set_num_threads(arguments.threads)
    if not use_instruction_set(arguments.instruction_set):
        parser.error(f"--instruction-set: this machine has no {arguments.instruction_set}")
    ggml = Ggml.find(arguments.llamacpp)
    if ggml is None:
        print(f"no llama.cpp: --llamacpp or {VARIABLE} names no folder with {BASE} and {CPU}")
    rates = multiply_rates(instruction_set())
    if not rates:
        print("no bound of the multipliers: there is no cc, or these instructions are not counted")
    with torch.inference_mode():
        bench = Bench(arguments.threads, read_rate(), rates, ggml)
        print(f"{instruction_set()}, {bench.threads} threads, read {bench.read_bytes_per_s / 1e9:.1f} GB/s")
        for name, rate in rates.items():
            print(f"{name}: {rate / 1e9:.2f} thousand million of 256 bits a second and thread")
        table([quantised[name] for name in names], columns, bench, partial(print, flush=True))


if __name__ == "__main__":
    main()
