"""How far our own runs lie from predictions that a probe of the same boxes gave (probed.yaml)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from benchmarks.published.judge import range_of
from placement.errors import InputError
from placement.fields.yaml_file import read_mapping, validate_fields
from placement.hardware.spread import Range

PATH = Path(__file__).parent / "probed.yaml"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _RunsModel(_Strict):
    machine: str
    source: str
    errors: list[Annotated[list[float], Field(min_length=1)]] = Field(min_length=1)


class _FileModel(_Strict):
    runs: list[_RunsModel]
    played: list[_RunsModel]


Sessions = list[list[list[float]]]
"""Measured by predicted tokens/s: by session, then by boxes and kind of step, then by layout."""


def probed_ratios() -> Sessions:
    """Of runs by whose speeds probed boxes are judged; raises InputError: the file is not as it should be.

    A step that took longer than predicted gave fewer.
    """
    return _ratios(_file().runs)


def played_ratios() -> Sessions:
    """Of runs whose boxes' memory was all played, which says of ratios alone; raises as `probed_ratios`."""
    return _ratios(_file().played)


def probed_range() -> Range:
    """Factors of tokens/s, each measurement by itself; raises InputError as `probed_ratios`."""
    return range_of([ratio for session in probed_ratios() for alike in session for ratio in alike])


def _file() -> _FileModel:
    return validate_fields(read_mapping(PATH, InputError, "runs and played"), _FileModel, PATH, InputError)


def _ratios(runs: list[_RunsModel]) -> Sessions:
    return [[[1 + error for error in alike] for alike in each.errors] for each in runs]
