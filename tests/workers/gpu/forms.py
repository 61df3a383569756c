"""Forms of weights in tests: some in every run, the others where there is time to compile kernels for all."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

OFTEN = ("float32", "bfloat16", "q8_0", "q4_k", "iq4_xs", "iq3_s")


def each(names: Iterable[str]) -> list[Any]:
    """For `parametrize`: those that are not tried often have the marker `card`."""
    return [name if name in OFTEN else pytest.param(name, marks=pytest.mark.card) for name in names]
