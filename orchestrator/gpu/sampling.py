"""Choosing tokens on a card: ids are read back, not logits."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from orchestrator.row_choice import RowChoiceArgs
from workers.gpu.alignment import aligned
from workers.gpu.device import Stream

CHOICE_BYTES = ctypes.sizeof(RowChoiceArgs)
_THREADS = 256
# Of a block, so that a row of 128k logits has 64 blocks, and each thread eight loads.
_BLOCK_LOGITS = 2048
_CUT_THREADS = 1024
_KEY_BYTES, _PART_BYTES = 8, 16


class _ChooseArgs(ctypes.Structure):
    _fields_ = (
        ("logits", ctypes.c_void_p),
        ("banned", ctypes.c_void_p),
        ("choices", ctypes.c_void_p),
        ("keys", ctypes.c_void_p),
        ("parts", ctypes.c_void_p),
        ("largest", ctypes.c_void_p),
        ("least", ctypes.c_void_p),
        ("weights", ctypes.c_void_p),
        ("token_ids", ctypes.c_void_p),
        ("vocab", ctypes.c_int64),
        ("stride", ctypes.c_int64),
        ("num_parts", ctypes.c_int64),
    )


@dataclass(frozen=True, slots=True)
class NeededKernels:
    """Which kernels some rows' choices need.

    Attributes:
        noise: some have a temperature.
        weights: some of those leave tokens out by top_p; cut: by top_k or top_p.
    """

    noise: bool = False
    weights: bool = False
    cut: bool = False

    @classmethod
    def of(cls, choices: Sequence[RowChoiceArgs]) -> NeededKernels:
        warm = [choice for choice in choices if choice.temperature > 0]
        weights = any(choice.top_p < 1 for choice in warm)
        return cls(bool(warm), weights, weights or any(choice.top_k > 0 for choice in warm))


def choosing_bytes(num_rows: int, vocab: int) -> int:
    """Bytes of the workspace that `choose_tokens` needs."""
    return sum(_sizes(num_rows, vocab))


def choose_tokens(
    stream: Stream,
    num_rows: int,
    vocab: int,
    needed: NeededKernels,
    *,
    logits: int,
    logits_stride: int,
    choices: int,
    workspace: int,
    token_ids: int,
    banned: int,
) -> None:
    """A token for each row, as `choose_token` of orchestrator/kernels on the same numbers.

    Args:
        needed: by all rows.
        logits: float32, rows `logits_stride` numbers apart.
        choices: `RowChoiceArgs` of each row.
        workspace: `choosing_bytes` bytes.
        token_ids: int32 [rows], written; -1 says that the row's largest logit is not finite.
        banned: `token_bits` of each set of tokens that rows may leave out, one behind another, or 0.
    """
    starts = accumulate(_sizes(num_rows, vocab), initial=workspace)
    keys, parts, largest, least, weights, _ = starts
    num_parts = _parts(vocab)
    arguments = _ChooseArgs(
        logits,
        banned,
        choices,
        keys,
        parts,
        largest,
        least,
        weights,
        token_ids,
        vocab,
        logits_stride,
        num_parts,
    )
    by_part, by_row = (num_parts, num_rows, 1), (num_rows, 1, 1)
    stream.launch("largest_parts", by_part, _THREADS, arguments)
    stream.launch("largest_join", by_row, 32, arguments)
    if needed.weights:
        stream.launch("weigh_tokens", (-(-vocab // _THREADS), num_rows, 1), _THREADS, arguments)
    if needed.cut:
        stream.launch("cut_tokens", by_row, _CUT_THREADS, arguments)
    if needed.noise:
        stream.launch("noisy_parts", by_part, _THREADS, arguments)
        stream.launch("noisy_join", by_row, 32, arguments)


def _parts(vocab: int) -> int:
    return -(-vocab // _BLOCK_LOGITS)


def _sizes(num_rows: int, vocab: int) -> tuple[int, ...]:
    """Of keys, parts, orders of the largest and of the least, weights."""
    num_parts = num_rows * _parts(vocab)
    sizes = (
        _KEY_BYTES * num_parts,
        _PART_BYTES * num_parts,
        4 * num_rows,
        4 * num_rows,
        4 * num_rows * vocab,
    )
    return tuple(map(aligned, sizes))
