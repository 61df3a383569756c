"""Greedy sampling on a card: ids are read back, not logits."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from workers.gpu.device import Stream

_THREADS = 256
# Of a block, so that a row of 128k logits has 64 blocks, and each thread eight loads.
_BLOCK_LOGITS = 2048


class _ArgmaxArgs(ctypes.Structure):
    _fields_ = (
        ("logits", ctypes.c_void_p),
        ("banned", ctypes.c_void_p),
        ("parts", ctypes.c_void_p),
        ("token_ids", ctypes.c_void_p),
        ("vocab", ctypes.c_int64),
        ("stride", ctypes.c_int64),
        ("num_parts", ctypes.c_int64),
    )


def banned_bits(vocab: int, token_ids: Iterable[int]) -> NDArray[np.uint32]:
    """A bit for each token, set for the given ones: what `argmax` wants in the card's memory."""
    bits = np.zeros(-(-vocab // 32), np.uint32)
    ids = np.fromiter(token_ids, np.int64)
    np.bitwise_or.at(bits, ids // 32, np.uint32(1) << (ids % 32).astype(np.uint32))
    return bits


def argmax_workspace_bytes(num_rows: int, vocab: int) -> int:
    """Bytes that `argmax` needs beside its arrays."""
    return 8 * num_rows * _parts(vocab)


def argmax(
    stream: Stream,
    num_rows: int,
    vocab: int,
    *,
    logits: int,
    logits_stride: int,
    workspace: int,
    token_ids: int,
    banned: int = 0,
) -> None:
    """The id of each row's largest logit, as `Sampler.choose` at temperature 0.

    Args:
        logits: float32, rows `logits_stride` numbers apart.
        workspace: `argmax_workspace_bytes` bytes.
        token_ids: int32 [rows], written; ties go to the lowest id, -1 says that the largest is not finite.
        banned: `banned_bits` of tokens to leave out, or 0.
    """
    arguments = _ArgmaxArgs(logits, banned, workspace, token_ids, vocab, logits_stride, _parts(vocab))
    stream.launch("argmax_parts", (_parts(vocab), num_rows, 1), _THREADS, arguments)
    stream.launch("argmax_join", (num_rows, 1, 1), 32, arguments)


def _parts(vocab: int) -> int:
    return -(-vocab // _BLOCK_LOGITS)
