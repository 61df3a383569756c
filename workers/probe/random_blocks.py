"""Random blocks of every type that GGUF files come in: finite, of mean near 0 and of a chosen size.

Bytes are random, all but a block's scales. Those are set so that the weights get the standard deviation
asked for: a benchmark needs the real bytes and sensible values, and quantising gigabytes of numbers would
take hours.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import gguf
import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

_SAMPLE_BLOCKS = 2048


@dataclass(frozen=True, slots=True)
class _Scales:
    """Where a block's float16 scale lies, and its minimum's, None without one.

    `minimum`: in units of the scale, so that weights are 0 on average.
    """

    scale: int
    minimum_at: int | None = None
    minimum: float = 0.0


# Bytes into the block (ggml-common.h). A minimum is the mean of what it is taken from or added to.
_SCALES = {
    GGMLQuantizationType.Q4_0: _Scales(0),
    GGMLQuantizationType.Q4_1: _Scales(0, 2, -7.5),
    GGMLQuantizationType.Q5_0: _Scales(0),
    GGMLQuantizationType.Q5_1: _Scales(0, 2, -15.5),
    GGMLQuantizationType.Q8_0: _Scales(0),
    GGMLQuantizationType.Q2_K: _Scales(80, 82, 1.5),
    GGMLQuantizationType.Q3_K: _Scales(108),
    GGMLQuantizationType.Q4_K: _Scales(0, 2, 7.5),
    GGMLQuantizationType.Q5_K: _Scales(0, 2, 15.5),
    GGMLQuantizationType.Q6_K: _Scales(208),
    GGMLQuantizationType.IQ2_XXS: _Scales(0),
    GGMLQuantizationType.IQ2_XS: _Scales(0),
    GGMLQuantizationType.IQ2_S: _Scales(0),
    GGMLQuantizationType.IQ3_XXS: _Scales(0),
    GGMLQuantizationType.IQ3_S: _Scales(0),
    GGMLQuantizationType.IQ4_NL: _Scales(0),
    GGMLQuantizationType.IQ4_XS: _Scales(0),
}
_MXFP4_EXPONENT = 127
_UNQUANTISED = {
    "float32": GGMLQuantizationType.F32,
    "float16": GGMLQuantizationType.F16,
    "bfloat16": GGMLQuantizationType.BF16,
}

TYPES = (*_UNQUANTISED, "mxfp4", *(kind.name.lower() for kind in _SCALES))
"""Names of forms, as plans and docs spell them."""


def ggml_type(form: str) -> GGMLQuantizationType:
    """Of a form's name, one of TYPES."""
    return _UNQUANTISED[form] if form in _UNQUANTISED else GGMLQuantizationType[form.upper()]


class BlockPool:
    """Random blocks of one form, given out in any number from places of its own choosing."""

    def __init__(self, form: str, deviation: float, num_blocks: int, seed: int) -> None:
        """
        Args:
            deviation: standard deviation of the weights.
            num_blocks: so many are made; more than that repeats, shifted.
        """
        self._random = np.random.default_rng(seed)
        count = max(_SAMPLE_BLOCKS, num_blocks)
        self._blocks = random_blocks(form, count, deviation, self._random)

    def take(self, num_blocks: int) -> Iterator[NDArray[np.uint8]]:
        """uint8 [any, block_bytes], `num_blocks` in all."""
        while num_blocks:
            start = int(self._random.integers(len(self._blocks)))
            part = self._blocks[start : start + num_blocks]
            num_blocks -= len(part)
            yield part


def scale_places(form: str) -> tuple[int, ...]:
    """Where a quantised block has float16 numbers, its scale and its minimum: bytes from its start."""
    scales = _SCALES.get(ggml_type(form))
    if scales is None:
        return ()
    return (scales.scale,) if scales.minimum_at is None else (scales.scale, scales.minimum_at)


def random_blocks(form: str, count: int, deviation: float, random: np.random.Generator) -> NDArray[np.uint8]:
    """uint8 [count, block_bytes]: blocks of `form` whose weights have this standard deviation."""
    kind = ggml_type(form)
    block_bytes = gguf.GGML_QUANT_SIZES[kind][1]
    if form in _UNQUANTISED:
        values = random.standard_normal((count, 1), np.float32) * np.float32(deviation)
        if form == "bfloat16":  # cut, not rounded: random all the same, and quick
            return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
        return (values if form == "float32" else values.astype(np.float16)).view(np.uint8)
    blocks = random.integers(0, 256, (count, block_bytes), dtype=np.uint8)
    if kind == GGMLQuantizationType.MXFP4:
        # Powers of two: those with which the weights come nearest, and one below and one above.
        steps = random.integers(-1, 2, count).astype(np.int64)
        blocks[:, 0] = _MXFP4_EXPONENT + steps
        exponent = round(np.log2(deviation / _deviation(blocks[:_SAMPLE_BLOCKS], kind)))
        blocks[:, 0] = _MXFP4_EXPONENT + steps + exponent
        return blocks
    scales = _SCALES[kind]
    relative = random.uniform(0.75, 1.25, count)
    _set_scales(blocks, scales, relative)
    _set_scales(blocks, scales, relative * (deviation / _deviation(blocks[:_SAMPLE_BLOCKS], kind)))
    return blocks


def _set_scales(blocks: NDArray[np.uint8], scales: _Scales, values: NDArray[np.float64]) -> None:
    places = [(scales.scale, 1.0)]
    if scales.minimum_at is not None:
        places.append((scales.minimum_at, scales.minimum))
    for place, factor in places:
        blocks[:, place : place + 2] = (values * factor).astype("<f2")[:, None].view(np.uint8)


def _deviation(blocks: NDArray[np.uint8], kind: GGMLQuantizationType) -> float:
    return float(gguf.quants.dequantize(blocks, kind).std())
