"""How near the products of a card come to what its memory and its tensor cores allow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from benchmarks.gpu.arrays import Arrays
from benchmarks.gpu.card import CardUnderTest
from benchmarks.gpu.markdown import table
from placement.weight_format import FORMATS, WeightFormat
from workers.gpu.device import Stream
from workers.gpu.errors import DeviceFull
from workers.gpu.linear import GpuMatrix, GpuRows, linear
from workers.gpu.modules import TILE_FORMS
from workers.gpu.tiles import tiles
from workers.probe.gpu_clock import card_s

FEW_ROWS = (1, 2, 4, 8)


@dataclass(frozen=True, slots=True)
class KernelSizes:
    """What is multiplied.

    Attributes:
        forms: of weights.
        many_rows: of each expert.
        expert: rows and columns of an expert's gate.
        head: of matrices of the head, by name.
        least_bytes: of weights for few rows, more than caches hold.
        operations: for many rows, so that a launch is no large part of it.
        seconds: for each figure.
    """

    forms: tuple[str, ...]
    many_rows: tuple[int, ...]
    expert: tuple[int, int]
    head: tuple[tuple[str, tuple[int, int]], ...]
    least_bytes: int
    operations: float
    seconds: float


def few_rows_table(
    card: CardUnderTest, sizes: KernelSizes, copy_bytes_per_s: float, show: Callable[[str], None]
) -> None:
    """Share of the bandwidth of a copy that `linear` reads its weights with, and GB/s for one row."""
    shapes = [("experts", sizes.expert, True), *((name, shape, False) for name, shape in sizes.head)]
    heading = ["form", *(f"{name}: GB/s; % at {', '.join(map(str, FEW_ROWS))} rows" for name, _, _ in shapes)]
    lines = []
    for form in map(FORMATS.__getitem__, sizes.forms):
        cells = []
        for _, (rows, columns), is_grouped in shapes:
            rates = list(_read_rates(card, form, rows, columns, sizes, is_grouped=is_grouped))
            shares = ", ".join(f"{100 * rate / copy_bytes_per_s:.0f}" for rate in rates)
            cells.append(f"{rates[0] / 1e9:.0f}; {shares}" if rates else "no room")
        lines.append([form.name, *cells])
    show(
        f"**Few rows**: bytes of weights a second as a share of the {copy_bytes_per_s / 1e9:.0f} GB/s that a "
        "copy within the card reads and writes. The aim is 80%. Experts: one launch for all of them.\n"
    )
    show(table(heading, lines))


def many_rows_table(card: CardUnderTest, sizes: KernelSizes, show: Callable[[str], None]) -> None:
    """Operations a second of `tiles` with many rows of each expert."""
    lines = []
    for form in (FORMATS[name] for name in sizes.forms if name in TILE_FORMS):
        rates = list(_tile_rates(card, form, sizes))
        cells = []
        for rate in rates:
            share = "" if card.tensor_ops_per_s is None else f" ({100 * rate / card.tensor_ops_per_s:.0f}%)"
            cells.append(f"{rate / 1e12:.3g}{share}")
        lines.append([form.name, *(cells or ["no room"] * len(sizes.many_rows))])
    known = "whose peak is not known here"
    if card.tensor_ops_per_s is not None:
        known = f"of a peak of {card.tensor_ops_per_s / 1e12:.0f} (its clock by the driver, dense)"
    show(f"\n**Many rows**: TOPS of 8-bit integers on tensor cores, {known}; rows of each expert:\n")
    show(table(("form", *map(str, sizes.many_rows)), lines))


def _read_rates(
    card: CardUnderTest, form: WeightFormat, rows: int, columns: int, sizes: KernelSizes, *, is_grouped: bool
) -> Iterator[float]:
    """Bytes of weights a second with each of FEW_ROWS; none where the card has no room."""
    stream = card.device.stream()
    arrays, num_bytes = Arrays(stream), rows * form.row_bytes(columns)
    count = -(-max(sizes.least_bytes, 3 * card.cache_bytes) // num_bytes)
    try:
        matrices = arrays.matrices(form, rows, columns, count)
        x = arrays.rows(form, FEW_ROWS[-1], columns)
        out = arrays.room(4 * rows * FEW_ROWS[-1] * count)
    except DeviceFull:
        return
    each = [replace(matrices, table=matrices.table + 8 * place) for place in range(count)]
    for number in FEW_ROWS:
        if is_grouped:
            groups = arrays.groups(count, number)
            launch = partial(linear, stream, matrices, x, out, number, groups=groups)
        else:
            launch = partial(_one_after_another, stream, each, x, out, number)
        yield count * num_bytes / _graph_s(stream, launch, sizes.seconds)


def _one_after_another(
    stream: Stream, matrices: Sequence[GpuMatrix], rows: GpuRows, out: int, number: int
) -> None:
    for matrix in matrices:
        linear(stream, matrix, rows, out, number)


def _tile_rates(card: CardUnderTest, form: WeightFormat, sizes: KernelSizes) -> Iterator[float]:
    stream = card.device.stream()
    arrays, (rows, columns) = Arrays(stream), sizes.expert
    of_row = 2 * rows * columns
    counts = {number: max(1, round(sizes.operations / number / of_row)) for number in sizes.many_rows}
    try:
        matrices = arrays.matrices(form, rows, columns, max(counts.values()))
        x = arrays.rows(form, max(sizes.many_rows), columns)
        out = arrays.room(4 * rows * max(number * count for number, count in counts.items()))
    except DeviceFull:
        return
    for number, count in counts.items():
        groups = arrays.groups(count, number)
        launch = partial(tiles, stream, matrices, x, out, number, groups=groups)
        yield number * count * of_row / _graph_s(stream, launch, sizes.seconds)


def _graph_s(stream: Stream, launch: Callable[[], None], seconds: float) -> float:
    """Of the launches as a step has them, in one graph: what asking for them takes does not count."""
    launch()
    stream.synchronize()
    with stream.captured() as graph:
        launch()
    return card_s(stream, partial(stream.replay, graph), seconds)
