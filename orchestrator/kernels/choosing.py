"""Choosing a token from a row of logits."""

from __future__ import annotations

import ctypes
from ctypes import byref
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workers.kernels import native
from workers.kernels.native import address, raise_if_failed

_FLOAT32, _UINT32 = np.dtype(np.float32), np.dtype(np.uint32)


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
        ("has_banned", ctypes.c_int32),
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

    def args(self, *, has_banned: bool) -> RowChoiceArgs:
        return RowChoiceArgs(
            self.seed,
            self.answer,
            self.position,
            self.top_k,
            self.top_p,
            self.min_p,
            self.temperature,
            has_banned,
        )


def choose_token(
    logits: NDArray[np.float32], choice: RowChoice, banned: NDArray[np.uint32] | None = None
) -> int:
    """The id of a row's token, -1 where its largest logit is not finite.

    Args:
        logits: [vocab], below 2^31 of them.
        banned: a bit for each token that is left out, lowest bit first: [(vocab + 31) / 32].
    """
    (vocab,) = logits.shape
    if vocab == 0 or (banned is not None and banned.size != -(-vocab // 32)):
        raise ValueError(f"choose_token: {vocab} logits, bits of another size or no logits")
    token_id = ctypes.c_int64()
    status = native.choose_token(
        address(logits, _FLOAT32),
        vocab,
        None if banned is None else address(banned, _UINT32),
        byref(choice.args(has_banned=banned is not None)),
        byref(token_id),
    )
    raise_if_failed(status)
    return token_id.value
