"""Prompts with a part of the experts in RAM: computed there, or brought to the card where that is sooner."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median

import numpy as np
import torch

from benchmarks.gpu.decoding import opened
from benchmarks.gpu.layouts import Layout
from benchmarks.gpu.markdown import table
from orchestrator.model.attention import SequenceSlice
from orchestrator.model.step35 import Step35Model
from orchestrator.run_memory import Demand
from placement.kv_size import PASS_ROWS
from placement.streaming import crossover_rows
from workers.formats.open_model import OpenModel
from workers.gpu.tier import VramTier


def prompt_table(
    layouts: Sequence[Layout],
    model: OpenModel,
    *,
    prompts: Sequence[int],
    turns: int,
    demand: Demand,
    show: Callable[[str], None],
) -> None:
    """Tokens a second of prompts, without copies of experts and with them.

    Args:
        layouts: with experts on the card and in RAM.
    """
    lines = []
    for layout in layouts:
        with opened(layout, model, demand) as session:
            beside = next(tier.beside for tier in session.local.tiers if isinstance(tier, VramTier))
            with_s = {rows: _prompt_s(session.head, rows, turns) for rows in prompts}
            rates = beside.rates
            if rates is not None:
                # As if the host link took an hour.
                beside.rates = replace(rates, copy_s=3600.0)
            without_s = {rows: _prompt_s(session.head, rows, turns) for rows in prompts}
        pays = None if rates is None else crossover_rows(rates)
        for rows in prompts:
            lines.append(
                [
                    layout.name,
                    f"{rows:,}",
                    f"{rows / without_s[rows]:.0f}",
                    f"{rows / with_s[rows]:.0f}",
                    f"{without_s[rows] / with_s[rows]:.2f}",
                    "no room" if rates is None else f"{1e3 * rates.copy_s:.2f}",
                    "never" if pays is None else str(pays),
                ]
            )
    show(
        f"\n**Prompts** in passes of {PASS_ROWS} rows, tokens a second, with experts computed where they lie "
        "and with those brought to the card that pay; one pays from so many rows on, as this run measured:\n"
    )
    heading = ("VRAM", "tokens", "where they lie", "some copied", "times as fast", "ms a copy", "rows to pay")
    show(table(heading, lines))


def _prompt_s(head: Step35Model, rows: int, turns: int) -> float:
    """Until the first token is chosen; the median, after a turn that does not count."""
    ids = torch.from_numpy(np.random.default_rng(rows).integers(head.config.vocab_size, size=rows))
    times = []
    for turn in range(turns + 1):
        cache = head.new_cache()
        started = time.perf_counter()
        for start in range(0, rows, PASS_ROWS):
            part = ids[start : start + PASS_ROWS]
            hidden_states = head.forward(part, [SequenceSlice(cache, len(part))])
        head.logits_to_choose_from(hidden_states[-1:]).row(0)
        if turn:
            times.append(time.perf_counter() - started)
        del cache
    return median(times)
