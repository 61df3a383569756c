"""Whether workers compute what they should: others compute some requests too, and all bits are compared.

Sums are exact integers, so any other holders of the same experts give the same bits. Where two differ, the
head computes one of the differing rows from its own copy of the model's files, which says who was wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orchestrator.dispatch.debts import Ask
from placement.errors import InputError
from placement.plan import Plan
from placement.weight_format import ExpertFormat
from transport.expert_rows import ExpertRows
from workers.fixed_point import PartialSum
from workers.formats.checkpoint import Checkpoint
from workers.model_config import Step35Config
from workers.store import ExpertStore

DEFAULT_SHARE = 0.001

Arbiter = Callable[[int, ExpertRows], PartialSum]
"""(layer, rows) -> their true sum."""

_U64 = 2**64


@dataclass(frozen=True, slots=True)
class Answer:
    """What one worker answered to an ask of n rows: values [n, hidden_size] and saturated [n]."""

    ask: Ask
    values: NDArray[np.int32]
    saturated: NDArray[np.bool_]


class SpotCheck:
    """Which requests are checked: a share of them, drawn by their number, so that a run can be repeated.

    Args:
        share: 0 to 1, of all requests to other processes.
        arbiter: decides who was wrong.
        seed: another one draws others.
    """

    def __init__(self, share: float, arbiter: Arbiter, *, seed: int = 0) -> None:
        if not 0.0 <= share <= 1.0:
            raise InputError(f"spot check of a share of {share}; expected 0 to 1")
        self.arbiter = arbiter
        self._below = int(share * _U64)
        self._seed = seed

    def chooses(self, request_id: int) -> bool:
        """Whether to check this request."""
        return _mixed(request_id + self._seed * 0x9E3779B97F4A7C15) < self._below


def arbiter_of(checkpoint: Checkpoint, config: Step35Config, plan: Plan) -> Arbiter:
    """Computes rows from a copy of the model's files; only the experts that the rows ask for are read."""
    forms = {layer.index: ExpertFormat.of_name(layer.form) for layer in plan.layers}

    def decide(layer: int, rows: ExpertRows) -> PartialSum:
        asked = sorted(set(rows.expert_ids[rows.expert_ids >= 0].tolist()))
        store = ExpertStore.load(checkpoint, config, {layer: asked}, formats={layer: forms[layer]})
        return store.forward(layer, rows)

    return decide


def differing_row(answer: Answer, sums: NDArray[np.int32], scale_exponents: NDArray[np.int32]) -> int | None:
    """The first row of an answer that others computed differently, None where all agree.

    Args:
        sums: [n, hidden_size] of the others.
        scale_exponents: [n] what those are on: where a row was too large for its grid, on a coarser one.
    """
    too_large = scale_exponents != answer.ask.scale_exponents
    differ = too_large != answer.saturated
    differ |= ~too_large & (sums != answer.values).any(axis=1)
    return int(differ.argmax()) if differ.any() else None


def wrong_answers(
    arbiter: Arbiter, layer: int, rows: ExpertRows, place: int, answers: Sequence[Answer]
) -> list[Answer]:
    """Those of `answers` that are wrong about one row.

    Args:
        rows: that the answers' rows are numbers of.
        place: of the row among them.
    """
    return [answer for answer in answers if _is_wrong(arbiter, layer, rows, place, answer)]


def _is_wrong(arbiter: Arbiter, layer: int, rows: ExpertRows, place: int, answer: Answer) -> bool:
    found = np.flatnonzero(answer.ask.rows == place)
    if not len(found):
        return False
    at = int(found[0])
    part = slice(at, at + 1)
    asked = rows.at(np.array([place]))._replace(
        expert_ids=answer.ask.expert_ids[part], scale_exponents=answer.ask.scale_exponents[part]
    )
    truth = arbiter(layer, asked)
    if bool(truth.saturated[0]) != bool(answer.saturated[at]):
        return True
    return not truth.saturated[0] and bool((truth.values[0] != answer.values[at]).any())


def _mixed(number: int) -> int:
    """Splitmix64's last steps (Steele, Lea and Flood 2014): numbers side by side become unlike."""
    number %= _U64
    number = (number ^ (number >> 30)) * 0xBF58476D1CE4E5B9 % _U64
    number = (number ^ (number >> 27)) * 0x94D049BB133111EB % _U64
    return number ^ (number >> 31)
