"""How far a measured speed may lie from a predicted one, as spread.yaml has it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from placement.errors import HardwareFileError
from placement.fields.cluster_fields import Positive
from placement.fields.yaml_file import read_mapping, validate_fields
from placement.hardware.entry import Prose, Share

SPREADS = Path(__file__).parent / "spread.yaml"


@dataclass(frozen=True, slots=True)
class Range:
    """Factors of a predicted speed, or of the ratio of two, between which the measured one is likely to lie.

    Attributes:
        low, high: of tokens/s.
        count: of measured speeds or ratios, each beside its prediction, that the factors are from.
        covers: how often the next measured one is expected between them.
    """

    low: float
    high: float
    count: int
    covers: float

    @property
    def margin(self) -> float:
        """As a share: a predicted gain that is no larger may be none.

        It is none where the faster one is measured at the low side, or the slower one at the high side.
        """
        return max(self.high, 1 / self.low) - 1

    def holds(self, ratio: float) -> bool:
        """Whether a measured by predicted ratio lies between the factors."""
        return self.low <= ratio <= self.high


@dataclass(frozen=True, slots=True)
class Spreads:
    """Ranges by what they are of.

    Attributes:
        judged: speeds, by classes' shares of data sheets; judged on devices that nothing was set on.
        probed: speeds, by a probe of the very boxes.
        same_boxes: the ratio of two speeds of our runtime, on the same cluster with the same head.
    """

    judged: Range
    probed: Range
    same_boxes: Range


class _SpreadModel(BaseModel):
    """A range as the file has it. `source`: what was measured and predicted."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    low: Positive
    high: Positive
    count: Annotated[int, Field(ge=1)]
    covers: Share
    source: Prose

    @model_validator(mode="after")
    def _rises(self) -> _SpreadModel:
        if self.low > self.high:
            raise ValueError("expected low at most high")
        return self

    @property
    def range(self) -> Range:
        return Range(self.low, self.high, self.count, self.covers)


class _FileModel(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    judged: _SpreadModel
    probed: _SpreadModel
    same_boxes: _SpreadModel


def read_spreads(path: Path = SPREADS) -> Spreads:
    """Raises HardwareFileError: names file, field, what was expected and what was found."""
    document = read_mapping(path, HardwareFileError, "judged, probed and same_boxes")
    file = validate_fields(document, _FileModel, path, HardwareFileError)
    return Spreads(file.judged.range, file.probed.range, file.same_boxes.range)


@cache
def packaged_spreads() -> Spreads:
    """Those that come with Potluck, read once."""
    return read_spreads()
