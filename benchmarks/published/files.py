"""Files of published figures (benchmarks/published/*.yaml), each with one or more of three sections."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from benchmarks.published.measurements import Measurement
from benchmarks.published.passes import PublishedPasses
from benchmarks.published.reached_figures import ReachedFigure
from placement.errors import InputError
from placement.fields.yaml_file import read_mapping, validate_fields
from placement.files.quote import quote

FOLDER = Path(__file__).parent
_OTHER_FILES = {"models.yaml", "probed.yaml"}


class PublishedFile(BaseModel):
    """
    Attributes:
        measurements: speeds of one text at a time.
        rows: speeds of passes of several rows.
        reached: of memory, disks and links.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    measurements: list[Measurement] = []
    rows: list[PublishedPasses] = []
    reached: list[ReachedFigure] = []


def load_measurements(folder: Path = FOLDER) -> list[Measurement]:
    """All of them, file after file by name.

    Raises:
        InputError: a file that is no YAML of published figures, names the field; or an id that stands twice.
    """
    found = [measurement for file in _files(folder) for measurement in file.measurements]
    seen: set[str] = set()
    for measurement in found:
        if measurement.id in seen:
            raise InputError(f"{folder}: measurement {quote(measurement.id)} is there twice: rename one")
        seen.add(measurement.id)
    return found


def load_passes(folder: Path = FOLDER) -> list[PublishedPasses]:
    """All of them, file after file by name, each table once; raises InputError for a field that is wrong."""
    found: dict[object, PublishedPasses] = {}
    for file in _files(folder):
        for one in file.rows:
            found.setdefault((one.device, one.model, tuple(one.tokens_per_s.items())), one)
    return list(found.values())


def load_reached(folder: Path = FOLDER) -> list[ReachedFigure]:
    """All of them, file after file by name; raises InputError for a field that is wrong."""
    return [figure for file in _files(folder) for figure in file.reached]


def _files(folder: Path) -> Iterator[PublishedFile]:
    for path in sorted(folder.glob("*.yaml")):
        if path.name not in _OTHER_FILES:
            document = read_mapping(path, InputError, ", ".join(PublishedFile.model_fields))
            yield validate_fields(document, PublishedFile, path, InputError)
