"""What programs reached that do nothing but read, or send over a link: the catalogue's `reached` figures."""

from __future__ import annotations

from pydantic import Field, model_validator

from benchmarks.published.place import Place
from placement.fields.cluster_fields import GbitsPerS, GbytesPerS


class ReachedFigure(Place):
    """One figure of a device or link. What the catalogue counts of several is said there.

    Attributes:
        hardware: a catalogue name.
        what: the part that was measured, and the program.
    """

    hardware: str
    what: str = Field(min_length=1)
    bandwidth_gbytes_per_s: GbytesPerS | None = None
    bandwidth_gbits_per_s: GbitsPerS | None = None

    @model_validator(mode="after")
    def _has_one(self) -> ReachedFigure:
        if (self.bandwidth_gbytes_per_s is None) == (self.bandwidth_gbits_per_s is None):
            raise ValueError(
                f"{self.hardware}: expected one of bandwidth_gbytes_per_s and bandwidth_gbits_per_s"
            )
        return self

    @property
    def value(self) -> float:
        """In the unit that it is given in."""
        found = self.bandwidth_gbytes_per_s or self.bandwidth_gbits_per_s
        assert found is not None
        return found
