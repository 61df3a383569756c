"""All measurements, cut into those that set what classes reach and those that judge it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.published.engine import predicted_tokens_per_s
from benchmarks.published.files import load_measurements
from benchmarks.published.judge import Judged, range_about
from benchmarks.published.measurements import Halves, Measurement
from benchmarks.published.shares import fitted, with_figures
from placement.errors import InputError
from placement.files.quote import quote
from placement.hardware.catalogue import Catalogue
from placement.hardware.spread import Range

_ONLY_GPU = "computed by the CPU of a box whose memory its GPU shares: the catalogue has the GPU alone"


@dataclass(frozen=True, slots=True)
class Published:
    """Measurements by what they are used for.

    Attributes:
        fit: of devices that set shares.
        judged: of the other half of devices.
        left_out: what says nothing of the hardware, with the rule that says so.
    """

    fit: tuple[Measurement, ...]
    judged: tuple[Measurement, ...]
    left_out: tuple[tuple[Measurement, str], ...]

    @classmethod
    def load(cls, catalogue: Catalogue) -> Published:
        """Those of the repository; raises InputError for a file that is wrong."""
        return cls.of(load_measurements(), catalogue)

    @classmethod
    def of(cls, measurements: Sequence[Measurement], catalogue: Catalogue) -> Published:
        """Halves of the devices that come first in at least one measurement that counts.

        Raises:
            InputError: a device that the catalogue has not.
        """
        reasons = [(m, _left_out(m, catalogue)) for m in measurements]
        counted = [m for m, reason in reasons if reason is None]
        halves = Halves.of((m.first_device, catalogue.entry(m.first_device).hardware_class) for m in counted)
        return cls(
            tuple(m for m in counted if m.first_device in halves.fit),
            tuple(m for m in counted if m.first_device in halves.judged),
            tuple((m, reason) for m, reason in reasons if reason is not None),
        )


@dataclass(frozen=True, slots=True)
class Judgement:
    """Predictions beside what was published.

    Attributes:
        fit: the fitting half by the catalogue's shares, which it set.
        judged: the judged half by the same.
        swapped: the fitting half by shares that the judged half sets.
    """

    fit: tuple[Judged, ...]
    judged: tuple[Judged, ...]
    swapped: tuple[Judged, ...]

    @classmethod
    def of(cls, published: Published, catalogue: Catalogue) -> Judgement:
        """Raises InputError as `predicted_tokens_per_s`."""
        other_way = with_figures(catalogue, fitted(published.judged, catalogue))
        return cls(
            judged_by(published.fit, catalogue),
            judged_by(published.judged, catalogue),
            judged_by(published.fit, other_way),
        )

    def range(self) -> Range:
        """Of predictions for a device that set nothing: each device by the other half's shares."""
        return range_about([*self.judged, *self.swapped])


def judged_by(measurements: Sequence[Measurement], catalogue: Catalogue) -> tuple[Judged, ...]:
    """Each beside its prediction; raises InputError as `predicted_tokens_per_s`."""
    return tuple(Judged(m, predicted_tokens_per_s(m, catalogue)) for m in measurements)


def _left_out(measurement: Measurement, catalogue: Catalogue) -> str | None:
    if measurement.left_out is not None:
        return measurement.left_out
    try:
        kinds = {catalogue.entry(name).kind for box in measurement.of_boxes for name in box}
    except ValueError as error:
        raise InputError(f"measurement {quote(measurement.id)}: devices: {error}") from error
    return _ONLY_GPU if measurement.split == "cpu" and "ram" not in kinds else None
