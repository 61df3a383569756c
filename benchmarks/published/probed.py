"""How far our own runs lie from predictions that a probe of the same boxes gave (probed.yaml)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
    errors: list[Annotated[list[float], Field(min_length=1)]] = Field(min_length=1)


class _FileModel(_Strict):
    runs: list[_RunsModel]


def probed_ratios() -> list[list[list[float]]]:
    """Measured by predicted tokens/s: by session, then by boxes and kind of step, then by layout.

    A step that took longer than predicted gave fewer.

    Raises:
        InputError: the file is not as it should be.
    """
    file = validate_fields(read_mapping(PATH, InputError, "runs"), _FileModel, PATH, InputError)
    return [[[1 + error for error in alike] for alike in runs.errors] for runs in file.runs]


def probed_range() -> Range:
    """Factors of tokens/s, each measurement by itself; raises InputError as `probed_ratios`."""
    return range_of([ratio for session in probed_ratios() for alike in session for ratio in alike])
