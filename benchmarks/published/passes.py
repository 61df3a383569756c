"""Passes of several rows beside one row: what was published, and what the catalogue says."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from benchmarks.published.engine import Places, devices_of, problem_on, step_s
from benchmarks.published.measurements import FOLDER, measurement_files
from placement.errors import InputError
from placement.fields.cluster_fields import Positive
from placement.fields.yaml_file import read_mapping, validate_fields
from placement.hardware.catalogue import Catalogue
from placement.workload import Workload


class PublishedPasses(BaseModel):
    """One device's speeds with passes of several rows, all layers on it.

    Attributes:
        tokens_per_s: of all rows together, by the rows of a pass; 1 among them.
        what: the benchmark; batched ones have a row of each of several texts, others rows of one text.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    device: str
    model: str
    quant: str
    engine: str
    context: int = 0
    tokens_per_s: dict[int, Positive]
    what: str = ""
    source: str = Field(min_length=1)
    url: str = Field(min_length=1)

    @property
    def beside_one(self) -> dict[int, float]:
        """Seconds of a pass by those of a pass of one row."""
        one_s = 1 / self.tokens_per_s[1]
        return {rows: rows / rate / one_s for rows, rate in self.tokens_per_s.items() if rows > 1}

    @property
    def is_batched(self) -> bool:
        return "batched" in self.what


class _FileModel(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    rows: list[PublishedPasses] | None = None


def load_passes(folder: Path = FOLDER) -> list[PublishedPasses]:
    """All of them, file after file by name, each table once; raises InputError for a field that is wrong."""
    found: dict[object, PublishedPasses] = {}
    for path in measurement_files(folder):
        document = read_mapping(path, InputError, "measurements and rows")
        for one in validate_fields(document, _FileModel, path, InputError).rows or []:
            found.setdefault((one.device, one.model, tuple(one.tokens_per_s.items())), one)
    return list(found.values())


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
