"""What classes of devices reach, set on published measurements: the smallest errors of half of the devices.

Parts of a step take their time one after another, so a step is a sum of coefficients times what is looked
for: one over a share, or seconds of software. The coefficients are read off predictions, so that nothing here
knows the cost model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from benchmarks.published.engine import places_of, problem_of, step_s
from benchmarks.published.measurements import Measurement
from placement.hardware.catalogue import Catalogue
from placement.hardware.entry import ClassShares

SHARES = ("bandwidth_share", "attention_bandwidth_share")
SECONDS = ("layer_s",)
OF_GPUS = ("host_link_round_trip_s",)
"""Of cards alone, of which a box may have several, beside RAM."""
FITTED = (*SHARES, *SECONDS, *OF_GPUS)
# What a figure is before anybody measured. Where measurements say little of it, it stays about there.
_USUAL = {
    "bandwidth_share": 0.7,
    "attention_bandwidth_share": 0.4,
    "layer_s": 1e-4,
    "host_link_round_trip_s": 1e-4,
}
_MOST_SECONDS = 1e-3
_LEAST_SHARE, _MOST_SHARE = 0.05, 0.9
"""Of a class in whose devices nobody measured what a program reaches that does nothing but read."""
_PRIOR_WEIGHT = 0.05
"""Of the logarithm of a figure by its usual value, beside that of one device's error."""
_OUTLIER = 0.05
"""Errors beyond it count by their size, not by its square: one odd post does not decide a class."""
_TOLERANCE = 1e-12
"""So that the same measurements give the same digits anywhere."""
_TENTH = 0.1


@dataclass(frozen=True, slots=True)
class Figure:
    """One number that is looked for."""

    of_class: str
    name: str

    @property
    def is_share(self) -> bool:
        return self.name in SHARES


def _without_bounds(catalogue: Catalogue) -> Catalogue:
    """The same by data sheets alone, so that a step is linear in what is looked for."""
    entries = {
        name: entry if entry.kind == "link" else entry.model_copy(update={"reached": None})
        for name, entry in catalogue.entries.items()
    }
    return Catalogue(entries, catalogue.classes)


def with_figures(catalogue: Catalogue, values: Mapping[Figure, float]) -> Catalogue:
    """With other figures of classes."""
    classes: dict[str, ClassShares] = dict(catalogue.classes)
    for figure, value in values.items():
        classes[figure.of_class] = classes[figure.of_class].model_copy(update={figure.name: value})
    return Catalogue(catalogue.entries, classes)


def figures_for(measurements: Sequence[Measurement], catalogue: Catalogue) -> list[Figure]:
    """All that these measurements can tell of: of each class that occurs in them."""
    classes = {
        catalogue.entry(name).hardware_class for m in measurements for box in m.of_boxes for name in box
    }
    return [
        Figure(of_class, name)
        for of_class in sorted(classes)
        for name in (*SHARES, *SECONDS, *(OF_GPUS if of_class == "discrete-gpu" else ()))
    ]


def fitted(measurements: Sequence[Measurement], catalogue: Catalogue) -> dict[Figure, float]:
    """The figures with the smallest errors on these measurements; those of one device together count as one.

    Raises:
        InputError: as `predicted_tokens_per_s`.
    """
    figures = figures_for(measurements, catalogue)
    is_share = [figure.is_share for figure in figures]
    constant, slopes = coefficients(measurements, catalogue, figures)
    published_s = np.array([problem_of(m, catalogue)[1] / m.decode_tokens_per_s for m in measurements])
    counts = Counter(m.first_device for m in measurements)
    weights = np.array([counts[m.first_device] ** -0.5 for m in measurements])
    usual = np.array([_USUAL[figure.name] for figure in figures])
    low = np.array([_LEAST_SHARE if figure.is_share else 0.0 for figure in figures]) / usual
    high = np.array([_most(figure, catalogue) for figure in figures]) / usual

    def residuals(scale: NDArray[np.float64]) -> NDArray[np.float64]:
        seconds = constant + slopes @ _terms(figures, scale * usual)
        prior = np.where(is_share, np.log(scale), (scale - 1) / 2)
        return np.concatenate([weights * np.log(seconds / published_s), _PRIOR_WEIGHT * prior])

    found = least_squares(
        residuals,
        np.ones(len(figures)),
        bounds=(low, high),
        loss="soft_l1",
        f_scale=_OUTLIER,
        xtol=_TOLERANCE,
        ftol=_TOLERANCE,
        gtol=_TOLERANCE,
    )
    return dict(zip(figures, (float(value) for value in found.x * usual), strict=True))


def coefficients(
    measurements: Sequence[Measurement], catalogue: Catalogue, figures: Sequence[Figure]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of each step: seconds whatever the figures [num_measurements], and for each figure's term.

    A term is one over a share, or seconds: [num_measurements, num_figures].
    """
    unit = with_figures(
        _without_bounds(catalogue), {figure: 1.0 if figure.is_share else 0.0 for figure in figures}
    )
    base = _steps_s(measurements, unit)
    slopes = np.empty((len(measurements), len(figures)))
    for column, figure in enumerate(figures):
        # A tenth: catalogue figures are rounded to three digits, which then stay.
        value, term = (_TENTH, 1 / _TENTH - 1) if figure.is_share else (1e-3, 1e-3)
        slopes[:, column] = (_steps_s(measurements, with_figures(unit, {figure: value})) - base) / term
    constant = base - slopes @ np.array([1.0 if figure.is_share else 0.0 for figure in figures])
    return constant, slopes


def _most(figure: Figure, catalogue: Catalogue) -> float:
    """No share is more than what a program that only reads has reached on a device of the class."""
    if not figure.is_share:
        return _MOST_SECONDS
    read = [
        entry.reached.read_gbytes_per_s / entry.data_sheet.bandwidth_gbytes_per_s
        for entry in catalogue.entries.values()
        if entry.hardware_class == figure.of_class
        and entry.reached is not None
        and entry.reached.read_gbytes_per_s is not None
        and entry.data_sheet.bandwidth_gbytes_per_s is not None
    ]
    return max(read, default=_MOST_SHARE)


def _terms(figures: Sequence[Figure], values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where([figure.is_share for figure in figures], 1 / values, values)


def _steps_s(measurements: Sequence[Measurement], catalogue: Catalogue) -> NDArray[np.float64]:
    found = []
    for measurement in measurements:
        problem, _ = problem_of(measurement, catalogue)
        found.append(step_s(problem, places_of(measurement, problem)))
    return np.array(found)
