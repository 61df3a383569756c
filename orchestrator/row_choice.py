"""How one row's token is chosen: what kernels take; without torch, so that commands may count bytes."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass


class RowChoiceArgs(ctypes.Structure):
    """Of `gpu/row_choice.h`."""

    _fields_ = (
        ("seed", ctypes.c_uint64),
        ("answer", ctypes.c_uint64),
        ("position", ctypes.c_uint64),
        ("top_k", ctypes.c_int64),
        ("top_p", ctypes.c_double),
        ("min_p", ctypes.c_double),
        ("temperature", ctypes.c_float),
        ("banned_set", ctypes.c_int32),
    )


@dataclass(frozen=True, slots=True)
class RowChoice:
    """How one row's token is chosen; docs/arithmetic.md says what each number does.

    Attributes:
        temperature: 0, or at least 2^-126.
        top_k: 0 for all tokens.
        seed, answer, position: from 0 below 2^64.
    """

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int
    answer: int
    position: int

    def args(self, *, banned_set: int) -> RowChoiceArgs:
        """`banned_set`: which set of banned tokens is left out, from 1; 0 for none."""
        return RowChoiceArgs(
            self.seed,
            self.answer,
            self.position,
            self.top_k,
            self.top_p,
            self.min_p,
            self.temperature,
            banned_set,
        )
