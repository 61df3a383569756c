"""The compiled library: where it is found, its functions' signatures, and what their arguments must be."""

from __future__ import annotations

import ctypes
from ctypes import addressof
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from placement.errors import NativeCodeNotBuilt
from transport.rounded_hidden import RoundedHidden
from workers.compiled import load_library

OUT_OF_MEMORY, BAD_EXPERT_ID, BAD_EXPONENT, BAD_ROUNDED_ROWS, PAGES_NOT_HELD = -1, -2, -3, -4, -5

num_threads = torch.get_num_threads


_library = load_library(Path(__file__).parent, "_native")
_P, _I, _L, _F = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_float
_S = ctypes.c_char_p


class TablesArgs(ctypes.Structure):
    """Of `arguments.h`, as are the next seven."""

    _fields_ = tuple(
        (name, _P) for name in ("iq4", "mxfp4", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s", "signs")
    )


class WeightMatrixArgs(ctypes.Structure):
    _fields_ = (
        ("data", _P),
        ("scales", _P),
        ("rows", _L),
        ("columns", _L),
        ("row_bytes", _L),
        ("format", _L),
    )


class ExpertRowsArgs(ctypes.Structure):
    _fields_ = (
        ("hidden", _P),
        ("q_256", _P),
        ("q_32", _P),
        ("scales_256", _P),
        ("scales_32", _P),
        ("expert_ids", _P),
        ("weights", _P),
        ("scale_exponents", _P),
        ("num_rows", _L),
        ("hidden_size", _L),
        ("top_k", _L),
    )


class ExpertMatrixArgs(ctypes.Structure):
    """`data` and `scales`: of addresses, by slot."""

    _fields_ = WeightMatrixArgs._fields_


class ExpertMatricesArgs(ctypes.Structure):
    _fields_ = (
        ("gate", ExpertMatrixArgs),
        ("up", ExpertMatrixArgs),
        ("down", ExpertMatrixArgs),
        ("slots", _P),
        ("num_experts", _L),
        ("limit", _F),
        ("max_magnitude", ctypes.c_int32),
    )


class AttentionHeadsArgs(ctypes.Structure):
    _fields_ = (
        ("qk_norm", _P),
        ("num_heads", _L),
        ("num_kv_heads", _L),
        ("head_dim", _L),
        ("window", _L),
        ("scale", _F),
        ("eps", _F),
        ("has_gate", _L),
    )


class RotationArgs(ctypes.Structure):
    _fields_ = (("cos", _P), ("sin", _P), ("half", _L))


class SequenceRowsArgs(ctypes.Structure):
    _fields_ = (("tables", _P), ("most_pages", _L), ("position", _L), ("num_rows", _L))


def _function(name: str, argtypes: list[type], restype: type | None = None) -> ctypes._NamedFuncPointer:
    try:
        function = getattr(_library, f"potluck_{name}")
    except AttributeError:
        raise NativeCodeNotBuilt(
            f"the compiled kernels are of another state of the source: they lack {name}; "
            f"{NativeCodeNotBuilt.REMEDY}"
        ) from None
    function.argtypes, function.restype = argtypes, restype
    return function  # type: ignore[no-any-return]


isa = _function("isa", [], _S)
set_isa = _function("set_isa", [_S], _I)
set_tables = _function("set_tables", [ctypes.POINTER(TablesArgs)])
linear = _function("linear", [_P, _P, _L, _P, _L, _L, _I], _I)
round_rows = _function("round_rows", [_P, _L, _L, _L, _P, _P, _I], _I)
rms_norm = _function("rms_norm", [_P, _P, _P, _L, _L, _F, _I, _I])
exp = _function("exp", [_P, _P, _L])
sigmoid = _function("sigmoid", [_P, _P, _L, _I])
swiglu = _function("swiglu", [_P, _P, _P, _L, _F, _I])
row_exponents = _function("row_exponents", [_P, _P, _L, _L, _I, _I, _I, _I])
grid_to_float32 = _function("grid_to_float32", [_P, _P, _P, _L, _L, _I], _I)
route_top_k = _function("route_top_k", [_P, _P, _P, _P, _L, _L, _L, _I, _F, _I], _I)
choose_token = _function("choose_token", [_P, _L, _P, _P, _P], _I)
noise = _function("noise", [_P, _P, _P, _L])
_A, _R = ctypes.POINTER(AttentionHeadsArgs), ctypes.POINTER(RotationArgs)
attention = _function("attention", [_P, _L, _A, _R, ctypes.POINTER(SequenceRowsArgs), _L, _L, _I, _P, _I], _I)
_M = ctypes.POINTER(WeightMatrixArgs)
dense_ffn = _function("dense_ffn", [_P, _M, _M, _M, _P, _L, _F, _I], _I)
format_index = _function("format_index", [_S, _L, _L], _I)
moe_partial_sum = _function(
    "moe_partial_sum",
    [ctypes.POINTER(ExpertRowsArgs), ctypes.POINTER(ExpertMatricesArgs), _P, _P, _I],
    _I,
)


def instruction_set() -> str:
    """The instruction set in use: "avx512vnni", "avx512", "avx2", "neondot", "neon" or "baseline"."""
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


def mismatch(name: str, **shapes: Tensor | NDArray[Any] | RoundedHidden) -> ValueError:
    return ValueError(
        f"{name}: shapes do not fit: " + ", ".join(f"{k} {list(v.shape)}" for k, v in shapes.items())
    )


def raise_if_failed(status: int) -> None:
    if status == OUT_OF_MEMORY:
        raise MemoryError("a kernel could not allocate its working memory")
    if status == BAD_EXPONENT:
        raise ValueError("a scale exponent is outside -512 to 512")
