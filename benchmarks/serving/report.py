"""The tables that people read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.table import Table

from benchmarks.serving.growth import Growth
from benchmarks.serving.load import Figures
from benchmarks.serving.predicted import Prediction


def load_table(ours: Sequence[Figures], theirs: Sequence[Figures]) -> Table:
    """A row for each number of users, ours beside theirs where there are any."""
    columns = ("users", "tokens/s", "by one user", "first token p50, p99 ms", "gap p50, p99 ms")
    table = Table(*columns, "answered, refused, failed", "drafts held")
    if theirs:
        for name in ("llama.cpp tokens/s", "first p50, p99 ms", "gap p50, p99 ms", "times as fast"):
            table.add_column(name)
    for place, row in enumerate(ours):
        cells = [str(row.users), f"{row.tokens_per_s:.1f}", f"{row.tokens_per_s / ours[0].tokens_per_s:.2f}"]
        cells += [_pair(row.first_p50_s, row.first_p99_s), _pair(row.gap_p50_s, row.gap_p99_s)]
        cells += [f"{row.answered}, {row.refused}, {row.failed}", _share(row.acceptance)]
        if theirs:
            other = theirs[place]
            cells += [f"{other.tokens_per_s:.1f}", _pair(other.first_p50_s, other.first_p99_s)]
            cells += [_pair(other.gap_p50_s, other.gap_p99_s)]
            cells += [f"{row.tokens_per_s / other.tokens_per_s:.2f}" if other.tokens_per_s else "-"]
        table.add_row(*cells)
    return table


def growth_table(grown: Sequence[Growth], theirs: Mapping[int, float]) -> Table:
    """Tokens a second of several sequences by those of one, beside what bytes alone would allow."""
    columns = ("sequences", "gap ms", "read a pass, MB", "experts of a layer", "bytes by one row")
    table = Table(*columns, "gap by one", "growth", "by bytes", "growth / by bytes")
    if theirs:
        table.add_column("llama.cpp gap ms")
        table.add_column("its growth")
    one = grown[0]
    for row in grown:
        got, most = row.sequences * one.gap_s / row.gap_s, row.sequences * one.num_bytes / row.num_bytes
        cells = [str(row.sequences), f"{row.gap_s * 1e3:.2f}", f"{row.num_bytes / 1e6:.1f}"]
        cells += [f"{row.experts:.1f}", f"{row.num_bytes / one.num_bytes:.2f}"]
        cells += [f"{row.gap_s / one.gap_s:.2f}", f"{got:.2f}", f"{most:.2f}", f"{got / most:.2f}"]
        if theirs:
            gap_s = theirs[row.sequences]
            cells += [f"{gap_s * 1e3:.2f}", f"{row.sequences * theirs[1] / gap_s:.2f}"]
        table.add_row(*cells)
    return table


def predicted_table(found: Sequence[Figures], predictions: Sequence[tuple[Prediction, Prediction]]) -> Table:
    """Each load beside what the steps of the others, and its own, say of it."""
    table = Table("users", "tokens/s", "by the others", "by its own", "first token p50 ms")
    for name in ("by the others", "by its own"):
        table.add_column(name)
    for row, said in zip(found, predictions, strict=False):
        rates = [_beside(each.tokens_per_s, row.tokens_per_s, "{:.1f}") for each in said]
        firsts = [_beside(each.first_p50_s * 1e3, row.first_p50_s * 1e3, "{:.0f}") for each in said]
        measured = f"{row.tokens_per_s:.1f}", f"{row.first_p50_s * 1e3:.0f}"
        table.add_row(str(row.users), measured[0], *rates, measured[1], *firsts)
    return table


def _beside(said: float, measured: float, form: str) -> str:
    return f"{form.format(said)} ({said / measured - 1:+.0%})"


def _pair(first_s: float, second_s: float) -> str:
    return f"{first_s * 1e3:.0f}, {second_s * 1e3:.0f}"


def _share(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"
