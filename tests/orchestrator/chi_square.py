"""Pearson's test, without scipy.stats: every process of pytest would take a second to import it."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import chdtrc


def p_value(observed: ArrayLike, expected: ArrayLike) -> float:
    """How often counts as far from `expected` as these are drawn; both have the same sum."""
    counts, means = np.asarray(observed, float), np.asarray(expected, float)
    np.testing.assert_allclose(counts.sum(), means.sum(), rtol=1e-8)
    return float(chdtrc(counts.size - 1, ((counts - means) ** 2 / means).sum()))
