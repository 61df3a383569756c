"""What one run of a layout found, as JSON between the process that measured it and the report."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

Routing = list[list[list[int]]]
"""Of a pass: [num_tokens, moe_layers, top_k]."""


@dataclass(frozen=True, slots=True)
class Passes:
    """Passes of as many rows behind as many tokens.

    Attributes:
        seconds: of each pass, decode loop and sampling included.
        parts_s: mean seconds a pass by part of the step (`StepTimer`).
        routing: of each pass.
    """

    rows: int
    context: int
    seconds: list[float]
    parts_s: dict[str, float]
    routing: list[Routing]

    @property
    def median_s(self) -> float:
        return median(self.seconds)

    def chosen(self) -> list[NDArray[np.int64]]:
        """Of each pass, int64 [rows, moe_layers, top_k]."""
        return [np.array(routing, np.int64) for routing in self.routing]


@dataclass(frozen=True, slots=True)
class LayoutRun:
    """One process, or one with workers.

    Attributes:
        first_token_s: from the start of the process to the first token of a prompt of one.
        prefill_s: of each prompt of `prefill_tokens`.
        prefill_routing: of the last one, one pass.
        peak_bytes: by process, the most memory resident, mapped weights included.
        private_bytes: by process, without what is mapped from the file, at the end.
    """

    num_workers: int
    threads: int
    first_token_s: float
    prefill_tokens: int
    prefill_s: list[float]
    prefill_routing: Routing
    passes: list[Passes]
    peak_bytes: list[int]
    private_bytes: list[int]

    def write(self, path: Path) -> None:
        partial = path.with_name(f"{path.name}.partial")
        partial.write_text(json.dumps(asdict(self)))
        partial.rename(path)

    @classmethod
    def read(cls, path: Path) -> LayoutRun:
        fields: dict[str, Any] = json.loads(path.read_text())
        return cls(**(fields | {"passes": [Passes(**passes) for passes in fields["passes"]]}))

    def find(self, rows: int, context: int) -> Passes | None:
        """Those of so many rows behind about so many tokens."""
        same = [p for p in self.passes if p.rows == rows and (p.context >= 1000) == (context >= 1000)]
        return same[0] if same else None
