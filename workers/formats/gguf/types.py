"""The GGML types that tensors of a GGUF file come in: those we read, and the names of the others."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from placement.weight_format import BFLOAT16, FLOAT16, FLOAT32, Q8_0, WeightFormat

READABLE: Mapping[int, WeightFormat] = MappingProxyType({0: FLOAT32, 1: FLOAT16, 8: Q8_0, 30: BFLOAT16})
"""GGML's numbers (enum ggml_type in ggml.h) of the types that load."""

# Only for messages.
_NAMES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1", 10: "Q2_K",
    11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS",
    19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32",
    27: "I64", 28: "F64", 29: "IQ1_M", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip

READABLE_NAMES = ", ".join(_NAMES[number] for number in READABLE)


def type_name(number: int) -> str:
    """GGML's name of a type, its number where we know none."""
    return _NAMES.get(number, f"GGML type {number}")


def float32_values(stored: NDArray[np.uint8], form: WeightFormat) -> NDArray[np.float32]:
    """Stored blocks as float32, exactly: no form here holds a number that float32 does not.

    Args:
        stored: uint8 [n], contiguous: whole blocks of `form`.

    Returns:
        [weights], in the order stored; a view where the form is float32.
    """
    if form == FLOAT32:
        return stored.view("<f4")
    if form == FLOAT16:
        return stored.view("<f2").astype(np.float32)
    if form == BFLOAT16:
        return (stored.view("<u2").astype(np.uint32) << 16).view(np.float32)
    if form == Q8_0:
        blocks: NDArray[Any] = stored.view(np.dtype([("scale", "<f2"), ("weights", "i1", (32,))]))
        values = blocks["weights"].astype(np.float32)
        # A product of 11 and 8 bits. Broken scales are not a warning: whoever computes with them says so.
        with np.errstate(invalid="ignore"):
            values *= blocks["scale"].astype(np.float32)[:, None]
        return values.reshape(-1)
    raise ValueError(f"no reader for {form.name}")
