"""Bits a weight takes in each form, scales included."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from placement.errors import InputError
from placement.files.shown import shown

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
        raise InputError(f"quantisation {shown(name)}: expected {', '.join(BITS_PER_WEIGHT)}") from None


# Published files of these forms quantise nothing but the routed experts.
_EXPERTS_ONLY = {"fp8", "nvfp4"}
# GGUF files go below 4.5 bits by their experts; attention and the output keep about as many.
_FEWEST_HEAD_BITS = 4.5


def head_bits_of(quant: str) -> float:
    """Bits of each of the head's own weights in published files whose experts are in `quant`.

    Unquantised files have one form for all. FP8 and NVFP4 checkpoints keep the head in bfloat16. GGUF files
    quantise it too, about as much as the experts.

    Raises:
        InputError: an unknown name.
    """
    if quant.lower() in _EXPERTS_ONLY:
        return BITS_PER_WEIGHT["bfloat16"]
    return max(bits_per_weight(quant), _FEWEST_HEAD_BITS)


def value_bytes_of(quant: str) -> int:
    """Bytes of a value in the KV cache and of an activation on the wire: bfloat16, or all in float32.

    The head keeps its caches and sends its rows in the form of unquantised weights.
    """
    return 4 if quant.lower() == "float32" else 2
