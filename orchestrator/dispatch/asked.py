"""One layer on its way, and the rows that each of its requests takes along."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from orchestrator.dispatch.debts import Ask
from orchestrator.dispatch.layer_sum import LayerSum
from orchestrator.dispatch.spot_check import Answer
from placement.wire_form import BFLOAT16_ROWS, FLOAT32_ROWS, WireForm
from transport.expert_rows import ExpertRows, Hidden
from transport.rounded_hidden import RoundedHidden
from workers.kernels import round_rows


@dataclass(slots=True)
class Asked:
    """One layer on its way: what `Dispatcher.ask` has begun and `collect` ends.

    Attributes:
        here: what is left to this process.
        wire: the rows as they travel, made when first sent.
        noted: answers that are to be checked; of a check, all of its own.
        until_s: of a check, when it is let be; None for what is no check.
    """

    layer: int
    rows: ExpertRows
    work: LayerSum
    here: list[Ask] = field(default_factory=list)
    wire: Hidden | None = None
    noted: list[Answer] = field(default_factory=list)
    until_s: float | None = None


def rows_of(ask: Ask, rows: ExpertRows, hidden: Hidden) -> ExpertRows:
    """The rows of an ask, without copies where those are all. `hidden` are `rows.hidden`, maybe as sent."""
    weights = rows.weights
    if len(ask.rows) != len(hidden):
        hidden, weights = hidden[ask.rows], weights[ask.rows]
    return ExpertRows(hidden, ask.expert_ids, weights, ask.scale_exponents)


def as_sent(hidden: Hidden, form: WireForm) -> Hidden:
    """Float32 rows as they travel; those that go in bfloat16 are rounded to it already."""
    if isinstance(hidden, RoundedHidden) or form == FLOAT32_ROWS:
        return hidden
    if form == BFLOAT16_ROWS:
        return (hidden.view(np.uint32) >> 16).astype(np.uint16)
    return round_rows(hidden.view(np.float32), form.blocks)
