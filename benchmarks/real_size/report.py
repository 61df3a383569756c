"""Tables: measured beside floor, prediction and llama.cpp; what they mean for the whole model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

import numpy as np
from rich.table import Table

from benchmarks.published.acceptance import ACCEPTANCE
from benchmarks.real_size.machine import Machine
from benchmarks.real_size.measured import LayoutRun, Passes
from benchmarks.real_size.predict import Layout
from benchmarks.real_size.work import FileWork, by_form
from placement.kv_size import KvForm, read_bytes
from placement.model_shape import STEP_3_5_FLASH

_HOLD = dict(enumerate(ACCEPTANCE, start=1))
"""Share of drafts that hold, by drafts a step."""


@dataclass(frozen=True, slots=True)
class Floor:
    """The roofline's two terms for one pass, and its distinct bytes."""

    num_bytes: float
    read_s: float
    multiply_s: float

    @property
    def seconds(self) -> float:
        return max(self.read_s, self.multiply_s)


@dataclass(frozen=True, slots=True)
class Theirs:
    """llama.cpp's seconds: passes by rows, a token by context, and a prompt; several rounds of each."""

    pass_s: Mapping[int, Sequence[float]]
    token_s: Mapping[int, Sequence[float]]
    prefill_s: Sequence[float]

    def of(self, rows: int, context: int) -> float | None:
        """Seconds of a pass behind about so many tokens; None where it was not measured."""
        found = self.pass_s.get(rows, ()) if context < 1000 else self.token_s.get(context, ())
        return median(found) if found and (rows == 1 or context < 1000) else None


def floor_of(work: FileWork, passes: Passes, machine: Machine) -> Floor:
    """Mean over the passes."""
    rates = by_form(machine.from_cache)
    chosen = passes.chosen()
    num_bytes = fmean(work.distinct_bytes(ids, passes.context) for ids in chosen)
    multiply_s = fmean(work.multiply_s(ids, rates) for ids in chosen)
    return Floor(num_bytes, num_bytes / machine.read_bytes_per_s, multiply_s)


def prefill_floor(work: FileWork, run: LayoutRun, machine: Machine) -> Floor:
    chosen = np.array(run.prefill_routing, np.int64)
    num_bytes = work.distinct_bytes(chosen, 0)
    multiply_s = work.multiply_s(chosen, by_form(machine.from_cache), logits_rows=1)
    return Floor(num_bytes, num_bytes / machine.read_bytes_per_s, multiply_s)


def joined(runs: Sequence[LayoutRun]) -> list[Passes]:
    """Several rounds' passes of equal rows and context as one."""
    found: dict[tuple[int, bool], list[Passes]] = {}
    for run in runs:
        for passes in run.passes:
            found.setdefault((passes.rows, passes.context >= 1000), []).append(passes)
    return [_one(same) for same in found.values()]


def _one(same: Sequence[Passes]) -> Passes:
    parts = {name: fmean(p.parts_s.get(name, 0.0) for p in same) for name in same[0].parts_s}
    seconds = [second for p in same for second in p.seconds]
    return Passes(same[0].rows, same[0].context, seconds, parts, [r for p in same for r in p.routing])


@dataclass(frozen=True, slots=True)
class Round:
    """A run of one layout, the machine as probed right before it, and the layout with those rates."""

    run: LayoutRun
    machine: Machine
    layout: Layout


@dataclass(frozen=True, slots=True)
class Compared:
    """One round's pass."""

    measured_s: float
    floor: Floor
    predicted_s: float


def passes_table(rounds: Sequence[Round], theirs: Theirs | None, context: int) -> Table:
    """A row for each number of rows and context, then one for the prompt: medians over the rounds.

    The machine's own speed moves from minute to minute, so each round is compared with its own probe.
    """
    table = Table(
        "pass", "behind", "measured ms", "tokens/s", "GB", "read ms", "arithmetic ms", "floor / measured",
        "S-MBU", "predicted ms", "error", "llama.cpp ms", "times as fast",
    )  # fmt: skip
    for index, first in enumerate(rounds[0].run.passes):
        compared = []
        for each in rounds:
            passes = each.run.passes[index]
            floor = floor_of(each.layout.work, passes, each.machine)
            compared.append(Compared(passes.median_s, floor, each.layout.pass_s(passes)))
        other = theirs.of(first.rows, context if first.context >= 1000 else 0) if theirs else None
        table.add_row(str(first.rows), f"{first.context:,}", *_row(compared, first.rows, other))
    compared = [
        Compared(
            median(each.run.prefill_s),
            prefill_floor(each.layout.work, each.run, each.machine),
            each.layout.prefill_s(each.run),
        )
        for each in rounds
    ]
    other = median(theirs.prefill_s) if theirs and theirs.prefill_s else None
    tokens = rounds[0].run.prefill_tokens
    table.add_row(f"prompt of {tokens}", "0", *_row(compared, tokens, other))
    return table


def _row(compared: Sequence[Compared], tokens: int, other_s: float | None) -> list[str]:
    measured_s = median(c.measured_s for c in compared)
    return [
        f"{measured_s * 1e3:.2f}",
        f"{tokens / measured_s:.2f}",
        f"{median(c.floor.num_bytes for c in compared) / 1e9:.3f}",
        f"{median(c.floor.read_s for c in compared) * 1e3:.2f}",
        f"{median(c.floor.multiply_s for c in compared) * 1e3:.2f}",
        f"{median(c.floor.seconds / c.measured_s for c in compared):.0%}",
        f"{median(c.floor.read_s / c.measured_s for c in compared):.0%}",
        f"{median(c.predicted_s for c in compared) * 1e3:.2f}",
        f"{median(c.predicted_s / c.measured_s for c in compared) - 1:+.1%}",
        "" if other_s is None else f"{other_s * 1e3:.2f}",
        "" if other_s is None else f"{other_s / measured_s:.2f}",
    ]


def parts_table(runs: Sequence[LayoutRun]) -> Table:
    """Where the time of a pass goes, in ms."""
    every = joined(runs)
    names = list(dict.fromkeys(name for passes in every for name in passes.parts_s))
    table = Table("pass", "behind", *(name.replace("_", " ") for name in names))
    for passes in every:
        cells = (f"{passes.parts_s.get(name, 0.0) * 1e3:.2f}" for name in names)
        table.add_row(str(passes.rows), f"{passes.context:,}", *cells)
    return table


def memory_lines(runs: Sequence[LayoutRun], file_bytes: int) -> Iterator[str]:
    """Loading and memory beside their aims."""
    run = min(runs, key=lambda r: r.first_token_s)
    yield f"first token {run.first_token_s:.1f} s after the start (aim 5 s warm)"
    peak, private = sum(run.peak_bytes), sum(run.private_bytes)
    yield (
        f"peak memory {peak / 1e9:.2f} GB in {len(run.peak_bytes)} processes, the file has "
        f"{file_bytes / 1e9:.2f} GB (aim: 1.5 GB more); not the file's {private / 1e9:.2f} GB"
    )


def whole_model_table(
    runs: Sequence[LayoutRun], work: FileWork, machine: Machine, theirs: Theirs | None
) -> Table:
    """Extrapolated: passes take so many times as long as they read more bytes, and drafts hold as published.

    A step with n drafts is a pass of 1 + n rows and n MTP layers, each one more block of bytes.
    """
    table = Table("45 layers, extrapolated", "ms a step", "tokens/s", "llama.cpp tokens/s", "times as fast")
    every = {passes.rows: passes for passes in joined(runs) if passes.context < 1000}
    for drafts in (0, *_HOLD):
        passes = every.get(1 + drafts)
        if passes is None:
            continue
        more = _whole_bytes(work, passes) / floor_of(work, passes, machine).num_bytes
        mtp = drafts * _mtp_bytes(work) / floor_of(work, every[1], machine).num_bytes
        tokens = 1 + drafts * _HOLD.get(drafts, 0.0)
        ours_s = passes.median_s * more + mtp * every[1].median_s
        other, other_one = (theirs.of(1 + drafts, 0), theirs.of(1, 0)) if theirs else (None, None)
        cells = ["", ""]
        if other is not None and other_one is not None:
            theirs_s = other * more + mtp * other_one
            cells = [f"{tokens / theirs_s:.2f}", f"{theirs_s / ours_s:.2f}"]
        name = f"{drafts} drafts" if drafts else "no drafts"
        table.add_row(name, f"{ours_s * 1e3:.1f}", f"{tokens / ours_s:.2f}", *cells)
    return table


def _whole_bytes(work: FileWork, passes: Passes) -> float:
    """Distinct bytes of such a pass of the published model, in this file's forms."""
    whole = STEP_3_5_FLASH
    per_weight = work.head_bytes / sum(m.parameters for m in work.head)
    head = whole.head_read_parameters * per_weight
    layer_bytes = fmean(
        len(np.unique(ids[:, layer])) * sum(matrix.num_bytes for matrix in matrices)
        for ids in passes.chosen()
        for layer, matrices in enumerate(work.experts)
    )
    trunk = whole.attention[: whole.num_hidden_layers]
    keys = read_bytes(trunk, KvForm.bfloat16, passes.context)
    return head + whole.num_moe_layers * layer_bytes + keys


def _mtp_bytes(work: FileWork) -> float:
    per_weight = work.head_bytes / sum(m.parameters for m in work.head)
    return STEP_3_5_FLASH.mtp_layer_parameters(0) * per_weight
