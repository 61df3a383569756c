"""The compiled library: where it is found, its functions' signatures, and what their arguments must be."""

from __future__ import annotations

import ctypes
import importlib.machinery
from ctypes import addressof
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from placement.errors import PotluckError


class KernelsNotBuilt(PotluckError, ImportError):
    """The native kernels were not compiled for this Python."""


OUT_OF_MEMORY, BAD_EXPERT_ID, BAD_EXPONENT = -1, -2, -3

num_threads = torch.get_num_threads


def _load() -> ctypes.CDLL:
    folder = Path(__file__).parent
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        path = folder / f"_native{suffix}"
        if path.exists():
            return ctypes.CDLL(str(path))
    raise KernelsNotBuilt(f"{folder} has no compiled _native library: build it with `pip install -e .`")


_library = _load()
_P, _I, _L, _F = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_float


def _function(name: str, argtypes: list[type], restype: type | None = None) -> ctypes._NamedFuncPointer:
    function = getattr(_library, f"potluck_{name}")
    function.argtypes, function.restype = argtypes, restype
    return function  # type: ignore[no-any-return]


isa = _function("isa", [], ctypes.c_char_p)
set_isa = _function("set_isa", [ctypes.c_char_p], _I)
linear = _function("linear", [_P, _P, _I, _P, _L, _L, _L, _I])
rms_norm = _function("rms_norm", [_P, _P, _I, _P, _L, _L, _F, _I, _I])
exp = _function("exp", [_P, _P, _L])
sigmoid = _function("sigmoid", [_P, _P, _L, _I])
swiglu = _function("swiglu", [_P, _P, _P, _L, _F, _I])
row_exponents = _function("row_exponents", [_P, _P, _L, _L, _I, _I, _I, _I])
grid_to_float32 = _function("grid_to_float32", [_P, _P, _P, _L, _L, _I], _I)
route_top_k = _function("route_top_k", [_P, _P, _P, _P, _L, _L, _L, _I, _F, _I], _I)
attention = _function("attention", [_P, _P, _P, _P, _P, _I, _P, _L, _L, _L, _L, _L, _L, _L, _F, _I], _I)
dense_ffn = _function("dense_ffn", [_P, _P, _P, _P, _I, _P, _L, _L, _L, _F, _I], _I)
moe_partial_sum = _function(
    "moe_partial_sum",
    [_P, _P, _P, _P, _P, _P, _P, _P, _I, _P, _P, _L, _L, _L, _L, _L, _F, ctypes.c_int32, _I],
    _I,
)


def instruction_set() -> str:
    """The instruction set in use: "avx512", "avx2", "neon" or "baseline"."""
    return str(isa().decode())


def use_instruction_set(name: str) -> bool:
    """Switch this process to another instruction set (for tests); False if this machine lacks it."""
    return bool(set_isa(name.encode()))


def check(x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    if x.dtype is not dtype or not x.is_contiguous() or not x.is_cpu:
        raise ValueError(
            f"kernel argument: expected a contiguous {dtype} CPU tensor, found {x.dtype} on {x.device}, "
            f"strides {x.stride()}"
        )
    return x


_of_buffer: Any = ctypes.c_char.from_buffer  # numpy arrays are buffers, which their types do not say


def address(array: NDArray[Any], dtype: np.dtype[Any]) -> int:
    """Where the numbers of a contiguous array lie. (`array.ctypes.data` takes four times as long.)"""
    if array.dtype is dtype or array.dtype == dtype:
        try:
            return addressof(_of_buffer(array))
        except (TypeError, ValueError):  # of a read-only or empty array, which are fine, or a strided one
            if array.flags.c_contiguous:
                return array.ctypes.data
    raise ValueError(
        f"kernel argument: expected a contiguous {dtype} array, found {array.dtype}, strides {array.strides}"
    )


def is_bf16(*weights: Tensor) -> int:
    """1 for bfloat16 weights, 0 for float32; all of one call must agree."""
    dtype = weights[0].dtype
    for weight in weights:
        if (
            weight.dtype is not dtype
            or (dtype is not torch.float32 and dtype is not torch.bfloat16)
            or not weight.is_contiguous()
            or not weight.is_cpu
        ):
            raise ValueError(
                "kernel weights: expected contiguous CPU tensors, all float32 or all bfloat16, found "
                + ", ".join(f"{w.dtype} on {w.device}, strides {w.stride()}" for w in weights)
            )
    return 1 if dtype is torch.bfloat16 else 0


def mismatch(name: str, **shapes: Tensor | NDArray[Any]) -> ValueError:
    return ValueError(
        f"{name}: shapes do not fit: " + ", ".join(f"{k} {list(v.shape)}" for k, v in shapes.items())
    )


def raise_if_failed(status: int) -> None:
    if status == OUT_OF_MEMORY:
        raise MemoryError("a kernel could not allocate its working memory")
    if status == BAD_EXPONENT:
        raise ValueError("a scale exponent is outside -512 to 512")
