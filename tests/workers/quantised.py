"""Random blocks of quantised types, what they stand for, and the documented rounding, in plain numpy."""

from __future__ import annotations

import ctypes
import ctypes.util

import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from numpy.typing import NDArray

from placement.weight_format import WeightFormat
from workers.probe.random_blocks import random_blocks, scale_places


def any_blocks(
    form: WeightFormat, rows: int, columns: int, seed: int = 0, fill: int | None = None
) -> NDArray[np.uint8]:
    """uint8 [rows, bytes of a row]: any bits (or all bytes `fill`), with scales of any sign and small."""
    rng = np.random.default_rng(seed)
    shape = (rows, columns // form.block_weights, form.block_bytes)
    blocks = rng.integers(0, 256, shape, dtype=np.uint8) if fill is None else np.full(shape, fill, np.uint8)
    for place in scale_places(form.name):
        scales = (rng.standard_normal(shape[:2]) * 0.01).astype(np.float16)
        blocks[..., place : place + 2] = scales[..., None].view(np.uint8)
    if form.name == "mxfp4":
        blocks[..., 0] = rng.integers(118, 124, shape[:2])
    return blocks.reshape(rows, -1)


def sized_blocks(form: WeightFormat, rows: int, columns: int, seed: int, std: float) -> NDArray[np.uint8]:
    """uint8 [rows, bytes of a row]: random weights around 0 that spread by about `std`."""
    count = rows * columns // form.block_weights
    return random_blocks(form.name, count, std, np.random.default_rng(seed)).reshape(rows, -1)


def dequantised(form: WeightFormat, blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What the gguf library says that the blocks stand for: float32 [rows, columns]."""
    return np.asarray(dequantize(blocks, GGMLQuantizationType[form.name.upper()]), np.float32)


def rounded(x: NDArray[np.float32], block: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """docs/arithmetic.md, 'Rounding': q [rows, K] and scales [rows, K / block]."""
    blocks = x.reshape(len(x), -1, block)
    scales = np.abs(blocks).max(axis=2) / np.float32(127)
    scales[scales < np.float32(2.0**-126)] = 0
    scales[np.isinf(scales)] = np.nan
    with np.errstate(divide="ignore", invalid="ignore"):
        q = np.where(scales[..., None] > 0, np.rint(blocks / scales[..., None]), 0)
    return q.astype(np.int8).reshape(x.shape), scales


_fma = ctypes.CDLL(ctypes.util.find_library("m")).fmaf
_fma.argtypes, _fma.restype = [ctypes.c_float] * 3, ctypes.c_float


def fma32(a: np.float32, b: np.float32, c: np.float32) -> np.float32:
    """One rounding."""
    return np.float32(_fma(float(a), float(b), float(c)))
