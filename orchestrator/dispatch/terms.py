"""What a layer of a pass is told: how workers are chosen, what all layers share, how the workers are now."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from orchestrator.dispatch.debts import Ints
from orchestrator.dispatch.pace import Pace
from orchestrator.dispatch.view import NOBODY
from orchestrator.membership.events import Tell
from orchestrator.membership.standing import PongSeen
from placement.patience import Patience

Choose = Callable[[Ints, frozenset[int]], NDArray[np.integer]]
"""(expert_ids [n, top_k], workers not to ask) -> worker index [n, top_k], -1 where nobody is left."""


@dataclass(frozen=True, slots=True)
class Around:
    """What is known of the workers now.

    Attributes:
        gone: not to be asked, and nothing that they owe will come.
        suspects: silent for a moment: others are asked too where they can.
        pongs: newest sign of life, by worker.
        is_mended: the newest view is another one, and can do without the suspects.
    """

    gone: frozenset[int] = NOBODY
    suspects: frozenset[int] = NOBODY
    pongs: Mapping[int, PongSeen] = field(default_factory=dict)
    is_mended: bool = False


ALL_WELL = Around()


@dataclass(frozen=True, slots=True)
class Terms:
    """What all layers of a pass have in common.

    Attributes:
        names: worker names by index.
        request_ids: fresh request numbers, ascending.
        coarser: scale exponents of the next round, from those that saturated.
        max_coarsenings: rounds after the first, before a row counts as not finite.
        max_rows: of one message; more rows go in several.
        pace: remembers how long answers take.
        local: the worker of this process, which needs no watching.
        tell: takes what happens.
    """

    names: Sequence[str]
    request_ids: Iterator[int]
    coarser: Callable[[Ints], Ints]
    max_coarsenings: int
    max_rows: int
    patience: Patience
    pace: Pace
    local: int | None = None
    tell: Tell | None = None
