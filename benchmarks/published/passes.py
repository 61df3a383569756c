"""Passes of several rows beside one row: what was published, and what the catalogue says."""

from __future__ import annotations

from pydantic import field_validator

from benchmarks.published.engine import Places, devices_of, problem_on, step_s
from benchmarks.published.place import Place
from placement.fields.cluster_fields import Positive, Rows
from placement.hardware.catalogue import Catalogue
from placement.workload import Workload


class PublishedPasses(Place):
    """One device's speeds with passes of several rows, all layers on it.

    Attributes:
        tokens_per_s: of all rows together, by the rows of a pass; 1 among them.
        what: the benchmark; batched ones have a row of each of several texts, others rows of one text.
    """

    id: str | None = None
    device: str
    model: str
    quant: str
    engine: str
    build: str | None = None
    context: int = 0
    tokens_per_s: dict[Rows, Positive]
    what: str = ""

    @field_validator("tokens_per_s")
    @classmethod
    def _has_one_row(cls, rates: dict[int, float]) -> dict[int, float]:
        if 1 not in rates:
            raise ValueError(f"expected 1 row, which others are compared with, found {sorted(rates)}")
        return rates

    @property
    def beside_one(self) -> dict[int, float]:
        """Seconds of a pass by those of a pass of one row."""
        one_s = 1 / self.tokens_per_s[1]
        return {rows: rows / rate / one_s for rows, rate in self.tokens_per_s.items() if rows > 1}

    @property
    def is_batched(self) -> bool:
        return "batched" in self.what


def predicted_beside_one(passes: PublishedPasses, catalogue: Catalogue) -> dict[int, float]:
    """The same proportions, by the catalogue.

    Raises:
        InputError: a model or form that models.yaml has not.
    """
    rows = sorted(passes.beside_one)
    seconds = {number: _pass_s(passes, number, catalogue) for number in (1, *rows)}
    return {number: seconds[number] / seconds[1] for number in rows}


def _pass_s(passes: PublishedPasses, rows: int, catalogue: Catalogue) -> float:
    texts, drafts = (rows, 0) if passes.is_batched else (1, rows - 1)
    workload = Workload(num_sequences=texts, drafts=drafts, context=passes.context)
    devices = devices_of([[passes.device]], None, passes.engine, catalogue, passes.device)
    problem = problem_on(devices, passes.model, passes.quant, None, workload)
    shape = problem.shape
    places = Places((0,) * shape.num_hidden_layers, (0,) * shape.num_moe_layers)
    return step_s(problem, places)
