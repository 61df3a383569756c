"""Rounds matrices to GGUF's types of 32 weights a block; the gguf library does all of them but IQ4_NL."""

from __future__ import annotations

from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

_BLOCK = 32


def quantise(values: NDArray[np.float32], kind: GGMLQuantizationType) -> NDArray[Any]:
    """float32 [..., columns] as stored in `kind`: its own dtype, or uint8 [..., bytes of a row]."""
    if kind == GGMLQuantizationType.IQ4_NL:
        return _iq4_nl(values)
    stored: NDArray[Any] = gguf.quants.quantize(values, kind)
    return stored


def _iq4_nl(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Each weight is scale x one of 16 levels from -127 to 113: the block's scale is the best of a few.

    The largest weight meets the lowest level, or one near it, with either sign.
    """
    levels = np.array(gguf.quants.IQ4_NL.kvalues, np.float32)
    blocks = values.reshape(-1, _BLOCK)
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=1)[:, None], axis=1)
    best_error = np.full(len(blocks), np.inf, np.float32)
    scales = np.zeros((len(blocks), 1), np.float16)
    chosen = np.zeros(blocks.shape, np.uint8)
    for meets in (-127.0, -118.0, -104.0, 113.0, 101.0):
        scale = (largest / np.float32(meets)).astype(np.float16)
        wide = scale.astype(np.float32)
        scaled = np.divide(blocks, wide, out=np.zeros_like(blocks), where=wide != 0)
        codes = np.searchsorted((levels[1:] + levels[:-1]) / 2, scaled).astype(np.uint8)
        error = np.square(levels[codes] * wide - blocks).sum(axis=1)
        better = error < best_error
        best_error[better], scales[better], chosen[better] = error[better], scale[better], codes[better]
    packed = chosen[:, : _BLOCK // 2] | chosen[:, _BLOCK // 2 :] << 4
    stored = np.concatenate([scales.view(np.uint8), packed], axis=1)
    return stored.reshape(*values.shape[:-1], -1)
