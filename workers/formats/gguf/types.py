"""The GGML types that tensors of a GGUF file come in: those we read, and the names of the others."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from placement.weight_format import FORMATS, WeightFormat

# GGML's numbers (enum ggml_type in ggml.h).
_NAMES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1", 10: "Q2_K",
    11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS",
    19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32",
    27: "I64", 28: "F64", 29: "IQ1_M", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4",
    41: "Q1_0", 42: "Q2_0",
}  # fmt: skip
_OUR_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}

READABLE: Mapping[int, WeightFormat] = MappingProxyType(
    {
        number: FORMATS[name]
        for number, name in ((number, _OUR_NAMES.get(kind, kind.lower())) for number, kind in _NAMES.items())
        if name in FORMATS
    }
)
"""GGML's numbers of the types that load."""

NUMBERS: Mapping[WeightFormat, int] = MappingProxyType({form: number for number, form in READABLE.items()})

READABLE_NAMES = ", ".join(_NAMES[number] for number in READABLE)


def type_name(number: int) -> str:
    """GGML's name of a type, its number where we know none."""
    return _NAMES.get(number, f"GGML type {number}")
