"""Choosing a token from a row of logits."""

from __future__ import annotations

import ctypes
from ctypes import byref

import numpy as np
from numpy.typing import NDArray

from orchestrator.row_choice import RowChoice
from workers.kernels import native
from workers.kernels.native import address, raise_if_failed

_FLOAT32, _UINT32 = np.dtype(np.float32), np.dtype(np.uint32)


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
        byref(choice.args(banned_set=banned is not None)),
        byref(token_id),
    )
    raise_if_failed(status)
    return token_id.value
