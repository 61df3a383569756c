"""Bits a weight takes in each form, scales included."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from placement.errors import InputError

# The GGUF block formats count their scales: Q4_0 has 16 bits for 32 weights, Q4_K 4.5 bits in all.
# fp8 has one float32 for 128 x 128 weights, nvfp4 one byte for 16.
BITS_PER_WEIGHT: Mapping[str, float] = MappingProxyType(
    {
        "float32": 32.0,
        "bfloat16": 16.0,
        "q8": 8.5,
        "fp8": 8 + 32 / 128**2,
        "q6": 6.5625,
        "q5": 5.5,
        "q4": 4.5,
        "nvfp4": 4.5,
        "q3": 3.4375,
        "q2": 2.625,
    }
)


def bits_per_weight(name: str) -> float:
    """Raises InputError for an unknown name, listing the known ones."""
    try:
        return BITS_PER_WEIGHT[name.lower()]
    except KeyError:
        raise InputError(f"quantisation {name!r}: expected {', '.join(BITS_PER_WEIGHT)}") from None
