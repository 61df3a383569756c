"""How far our own runs lie from predictions that a probe of the same boxes gave (probed.yaml)."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from benchmarks.published.judge import Range, range_of
from placement.errors import InputError
from placement.fields.yaml_file import read_mapping, validate_fields

PATH = Path(__file__).parent / "probed.yaml"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _RunsModel(_Strict):
    machine: str
    source: str
    errors: list[float] = Field(min_length=1)


class _FileModel(_Strict):
    runs: list[_RunsModel]


def probed_range() -> Range:
    """Factors of tokens/s: a step that took longer than predicted gave fewer.

    Raises:
        InputError: the file is not as it should be.
    """
    file = validate_fields(read_mapping(PATH, InputError, "runs"), _FileModel, PATH, InputError)
    return range_of([1 + error for runs in file.runs for error in runs.errors])
