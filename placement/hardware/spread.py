"""How far a measured speed may lie from a predicted one: beside the classes in reached.yaml."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, model_validator

from placement.errors import HardwareFileError
from placement.fields.cluster_fields import Positive
from placement.fields.yaml_file import read_mapping, validate_fields
from placement.hardware.entry import Prose, Share

SPREADS = ("judged", "probed", "same_boxes")
"""Keys of reached.yaml beside those of classes."""
_REACHED = Path(__file__).parent / "reached.yaml"


class Spread(BaseModel):
    """Factors of a predicted speed, or of the ratio of two, between which the measured one lies.

    Attributes:
        low, high: of tokens/s.
        count: of measured by predicted ones that it is from.
        covers: how often the next measured one is expected between them.
        source: what was measured and predicted.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    low: Positive
    high: Positive
    count: int
    covers: Share
    source: Prose

    @model_validator(mode="after")
    def _rises(self) -> Spread:
        if self.low > self.high or self.count < 1:
            raise ValueError("expected low at most high, from one measurement at the least")
        return self

    @property
    def margin(self) -> float:
        """As `larger_side`."""
        return larger_side(self.low, self.high)


@dataclass(frozen=True, slots=True)
class Spreads:
    """By where the figures of the boxes are from.

    Attributes:
        judged: classes' shares of data sheets; judged on devices that nothing was set on.
        probed: a probe of the very boxes.
        same_boxes: any; of the ratio of two speeds of the same boxes, which placement alone makes differ.
    """

    judged: Spread
    probed: Spread
    same_boxes: Spread


def larger_side(low: float, high: float) -> float:
    """Of a range of factors, as a share: a difference that is no larger may be none."""
    return max(high - 1, 1 - low)


def read_spreads(path: Path = _REACHED) -> Spreads:
    """Raises HardwareFileError: names file, field, what was expected and what was found."""
    document = read_mapping(path, HardwareFileError, f"a key for each class, {', '.join(SPREADS)}")
    return Spreads(
        *(validate_fields(document.get(key), Spread, path, HardwareFileError, key) for key in SPREADS)
    )


@cache
def packaged_spreads() -> Spreads:
    """Those that come with Potluck, read once."""
    return read_spreads()
