"""What this machine's memory and these kernels do: the numbers behind floors and predictions.

    python -m benchmarks.real_size.machine [--forms q4_k,q5_k] [--threads 2]

prints them as a device of a cluster file states them. Weights are random blocks of a temporary file, mapped
as a model's are. It takes about ten seconds a form.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from orchestrator import kernels  # before torch: it sets what torch reads when loaded

# isort: split
import numpy as np
import torch
import typer
from torch import Tensor

from benchmarks.timing import FAR_BYTES, best_s, cache_s_per_row, read_rate
from placement.given.kernel_rates import KernelRates
from placement.weight_format import FORMATS, WeightFormat
from workers.kernels import instruction_set
from workers.kernels.matrix import TORCH_DTYPES, Matrices, Matrix
from workers.probe.random_blocks import random_blocks

ROWS = (1, 2, 3, 4, 8, 16, 64, 512)
WIDTH = 4096
_FEW_ROWS = 8
"""Passes of more rows are bound by arithmetic: fewer weights tell their rate."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Attributes:
    read_bytes_per_s: the quickest of plain sums and of all forms' kernels with one row.
    from_memory, from_cache: the kernels' rates on weights that lie there.
    """

    instruction_set: str
    threads: int
    read_bytes_per_s: float
    from_memory: tuple[KernelRates, ...]
    from_cache: tuple[KernelRates, ...]

    @property
    def prompt_flops_per_s(self) -> float:
        """What its quickest form reaches with many rows."""
        return max(rates.flops_per_s[-1] for rates in self.from_memory)

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> Machine:
        fields: dict[str, Any] = json.loads(path.read_text())
        for place in ("from_memory", "from_cache"):
            fields[place] = tuple(
                KernelRates(rates["form"], tuple(rates["rows"]), tuple(rates["flops_per_s"]))
                for rates in fields[place]
            )
        return cls(**fields)


def probe(forms: Sequence[WeightFormat], threads: int, rows: Sequence[int] = ROWS) -> Machine:
    """Measure now, with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        memory, cache, reads = [], [], [read_rate()]
        for form in forms:
            with mapped(form) as matrices:
                memory.append(_rates(form, matrices, rows))
                reads.append(memory[-1].flops_per_s[0] * form.bits / 16)
                cache.append(_rates_from_cache(form, matrices[0], rows, threads))
        return Machine(instruction_set(), threads, max(reads), tuple(memory), tuple(cache))
    finally:
        torch.set_num_threads(before)


@contextmanager
def mapped(form: WeightFormat) -> Iterator[list[Matrix]]:
    """Matrices of random weights [any, WIDTH], 192 MB together, mapped from a file."""
    row_bytes = form.row_bytes(WIDTH)
    count = 6
    rows = FAR_BYTES // count // row_bytes // 64 * 64
    blocks = random_blocks(form.name, rows * WIDTH // form.block_weights, 0.02, np.random.default_rng(0))
    with tempfile.NamedTemporaryFile() as file:
        for _ in range(count):
            file.write(blocks.data)
        file.flush()
        content = np.memmap(file.name, np.uint8, mode="c").reshape(count, rows, row_bytes)
        yield [_matrix(form, torch.from_numpy(part)) for part in content]


def _matrix(form: WeightFormat, data: Tensor) -> Matrix:
    dtype = TORCH_DTYPES.get(form)
    return Matrix(form, len(data), WIDTH, data if dtype is None else data.view(dtype))


def _first_rows(matrix: Matrix, rows: int) -> Matrix:
    return Matrix(matrix.form, rows, matrix.columns, matrix.data[:rows].clone())


def _rates(form: WeightFormat, matrices: Sequence[Matrix], rows: Sequence[int]) -> KernelRates:
    return KernelRates(form.name, tuple(rows), tuple(_flops_per_s(matrices, number) for number in rows))


def _rates_from_cache(form: WeightFormat, matrix: Matrix, rows: Sequence[int], threads: int) -> KernelRates:
    """Of one thread, times the threads: what a call itself costs would count for too much here."""
    rates = []
    for number in rows:
        row_s = cache_s_per_row(matrix, torch.randn(number, WIDTH))
        rates.append(2 * number * WIDTH * threads / row_s)
    return KernelRates(form.name, tuple(rows), tuple(rates))


def _flops_per_s(matrices: Sequence[Matrix], rows: int) -> float:
    if rows > _FEW_ROWS:
        matrices = [_first_rows(matrices[0], min(matrices[0].rows, 2048))]
    x = torch.randn(rows, WIDTH)
    flops = 2 * rows * WIDTH * sum(matrix.rows for matrix in matrices)

    def multiply() -> None:
        for matrix in matrices:
            kernels.linear(x, Matrices((matrix,)))

    return flops / best_s(multiply)


def main(
    forms: Annotated[str, typer.Option(help="With commas.")] = "q4_k,q5_k,q6_k,q8_0",
    threads: Annotated[int, typer.Option(min=1)] = os.cpu_count() or 1,
) -> None:
    """Print the figures as a cluster file states them."""
    unknown = [name for name in forms.split(",") if name not in FORMATS]
    if unknown:
        raise typer.BadParameter(f"--forms {unknown[0]!r}: expected some of {', '.join(FORMATS)}")
    found = probe([FORMATS[name] for name in forms.split(",")], threads)
    print(f"# {found.instruction_set}, {threads} threads")
    print(f"bandwidth_gbytes_per_s: {found.read_bytes_per_s / 1e9:.1f}")
    print("kernels:")
    for rates in found.from_memory:
        pairs = zip(rates.rows, rates.flops_per_s, strict=True)
        print(f"  {rates.form}: {{{', '.join(f'{rows}: {rate / 1e9:.1f}' for rows, rate in pairs)}}}")


if __name__ == "__main__":
    typer.run(main)
