"""Rotary position embedding by halves, partial and with static llama3 scaling."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from workers.config.rope import RopeDivisors, RopeScaling
from workers.model_config import LayerConfig

# Angles are computed in whole blocks of positions, so that a row of the table has the same bits however
# the table grew.
BLOCK_POSITIONS = 1024


def inverse_frequencies(
    theta: float, rotary_dim: int, scaling: RopeScaling | RopeDivisors | None = None
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Angle per position of each rotated pair, float64 [rotary_dim / 2].

    With llama3 scaling, wavelengths under original_max_position_embeddings / high_freq_factor stay, those
    over original_max_position_embeddings / low_freq_factor are divided by the factor, those between
    smoothly (Llama 3.1's rule; static, no attention factor). Given divisors are taken as they are.
    """
    plain: np.ndarray[tuple[int], np.dtype[np.float64]] = theta ** (
        -np.arange(0, rotary_dim, 2, dtype=np.float64) / rotary_dim
    )
    if scaling is None:
        return plain
    if isinstance(scaling, RopeDivisors):
        return plain / np.array(scaling.divisors, dtype=np.float64)
    wavelength = 2 * math.pi / plain
    turns = scaling.original_max_position_embeddings / wavelength
    smooth = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    smooth = np.clip(smooth, 0.0, 1.0)
    return plain * ((1 - smooth) / scaling.factor + smooth)


@dataclass(frozen=True, slots=True)
class RopeRows:
    """cos and signed sin of some positions, float32 [num_tokens, 1, head_dim], for `kernels.kv_rows`.

    Dimensions d and d + half make a pair; those from 2 * half on do not rotate.
    """

    cos: Tensor
    sin: Tensor
    half: int

    def part(self, start: int, stop: int) -> RopeRows:
        """Rows start .. stop-1."""
        return RopeRows(self.cos[start:stop], self.sin[start:stop], self.half)


class RopeTable:
    """cos/sin of every position so far asked for, computed in float64 and rounded once to float32."""

    def __init__(self, layer: LayerConfig) -> None:
        self._half = layer.rotary_dim // 2
        self._head_dim = layer.head_dim
        self._frequencies = inverse_frequencies(layer.rope_theta, layer.rotary_dim, layer.rope_scaling)
        self._cos = torch.empty(0, 1, layer.head_dim)
        self._sin = torch.empty(0, 1, layer.head_dim)

    def rows(self, start: int, stop: int) -> RopeRows:
        """Rows of positions start .. stop-1, a view of the table."""
        self._grow(stop)
        return RopeRows(self._cos[start:stop], self._sin[start:stop], self._half)

    def rows_of(self, spans: list[tuple[int, int]]) -> RopeRows:
        """Rows of several spans (start, stop) of positions, one after another."""
        if len(spans) == 1:
            return self.rows(*spans[0])
        self._grow(max(stop for _, stop in spans))
        cos = torch.cat([self._cos[start:stop] for start, stop in spans])
        sin = torch.cat([self._sin[start:stop] for start, stop in spans])
        return RopeRows(cos, sin, self._half)

    def _grow(self, num_positions: int) -> None:
        have = self._cos.shape[0]
        if num_positions <= have:
            return
        want = max(num_positions, 2 * have)
        blocks = range(have // BLOCK_POSITIONS, -(-want // BLOCK_POSITIONS))
        added = [self._block(block * BLOCK_POSITIONS) for block in blocks]
        self._cos = torch.cat([self._cos, *(cos for cos, _ in added)])
        self._sin = torch.cat([self._sin, *(sin for _, sin in added)])

    def _block(self, start: int) -> tuple[Tensor, Tensor]:
        half = self._half
        positions = np.arange(start, start + BLOCK_POSITIONS, dtype=np.float64)
        angles = positions[:, None] * self._frequencies
        cos = np.ones((BLOCK_POSITIONS, 1, self._head_dim), np.float32)
        sin = np.zeros((BLOCK_POSITIONS, 1, self._head_dim), np.float32)
        cos[:, 0, :half] = cos[:, 0, half : 2 * half] = np.cos(angles)
        sin[:, 0, half : 2 * half] = np.sin(angles)
        sin[:, 0, :half] = -sin[:, 0, half : 2 * half]
        return torch.from_numpy(cos), torch.from_numpy(sin)


def rope_key(layer: LayerConfig) -> tuple[object, ...]:
    """Layers with the same key share one table."""
    return (layer.head_dim, layer.rotary_dim, layer.rope_theta, layer.rope_scaling)
