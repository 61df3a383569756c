"""The head alone on a card, beside what reading its weights takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.gpu.decoding import context_of, head_bytes_of, opened, random_tokens, timed
from benchmarks.gpu.layouts import DTYPE, Layout
from benchmarks.gpu.markdown import table
from orchestrator.dispatch.pass_lost import PassLost
from orchestrator.run_memory import Demand, head_parts
from placement.given.probe_figures import Gpu
from placement.holders import HolderTable
from transport.expert_rows import ExpertRows
from workers.formats.open_model import OpenModel


@dataclass(frozen=True, slots=True)
class Nobody:
    """An `ExpertRunner` without experts: what is left is the head."""

    def begin_pass(self, lost: PassLost | None = None) -> None:
        """Nothing to settle."""

    def ask(self, layer: int, rows: ExpertRows) -> Any:
        return rows

    def collect(self, asked: Any) -> Tensor:
        return torch.zeros(asked.hidden.shape)

    def collect_on_grid(self, asked: Any) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        return np.zeros(asked.hidden.shape, np.int32), asked.scale_exponents

    def count_own(self, pairs: int) -> None:
        """Nobody counts."""


def head_table(
    layout: Layout,
    model: OpenModel,
    gpu: Gpu,
    *,
    contexts: tuple[int, ...],
    steps: int,
    demand: Demand,
    show: Callable[[str], None],
) -> None:
    """A line for each number of positions behind which a token is computed.

    Args:
        layout: with all of the head in VRAM; its experts are left out.
    """
    alone = without_experts(layout)
    parts = head_parts(model.contents, model.shape, DTYPE, demand)
    lines = []
    with opened(alone, model, demand) as session:
        head = session.head
        head.experts = Nobody()
        for positions in contexts:
            cache, tokens = context_of(head, positions), random_tokens(head, positions)
            timed(head, cache, tokens, 3)
            step_s = median(timed(head, cache, tokens, steps))
            num_bytes, _ = head_bytes_of(parts, alone, model, positions)
            floor_s = num_bytes / gpu.bandwidth_bytes_per_s
            lines.append(
                [
                    f"{positions:,}",
                    f"{num_bytes / 1e6:.0f}",
                    f"{1e6 * step_s:.0f}",
                    f"{1e6 * floor_s:.0f}",
                    f"{floor_s / step_s:.2f}",
                ]
            )
    show(
        "\n**The head alone** on the card, experts left out: a step with its choice of a token beside the "
        "time that a copy's bandwidth needs for the head's weights and the positions' keys and values. Rows "
        "still go to the CPU and back in each MoE layer.\n"
    )
    show(table(("positions", "MB a step", "µs a step", "µs at least", "share"), lines))


def without_experts(layout: Layout) -> Layout:
    """The same with all experts in RAM, so that none is computed on the card."""
    plan = layout.box.plan
    expert_bytes = sum(layer.expert_bytes for layer in plan.layers) * plan.holder_table.table.shape[1]
    ram = next(number for number, tier in enumerate(plan.tiers) if tier.kind == "ram")
    tiers = list(plan.tiers)
    tiers[ram] = replace(tiers[ram], budget_bytes=max(tiers[ram].budget_bytes, expert_bytes))
    single = np.full(plan.holder_table.table.shape[:2], ram, np.int16)
    moved = replace(plan, tiers=tuple(tiers), holder_table=HolderTable.from_single(single))
    return Layout("the head alone", replace(layout.box, plan=moved))
