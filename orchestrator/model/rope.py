"""Rotary position embedding by halves, partial and with static llama3 scaling."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from orchestrator.kernels import Rotation
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
    """cos and signed sin of some positions, float32 [num_tokens, 1, head_dim]; see `Rotation`."""

    cos: Tensor
    sin: Tensor


class RopeTable:
    """cos/sin of every position so far asked for, computed in float64 and rounded once to float32."""

    def __init__(self, layer: LayerConfig) -> None:
        self._half = layer.rotary_dim // 2
        self._head_dim = layer.head_dim
        self._frequencies = inverse_frequencies(layer.rope_theta, layer.rotary_dim, layer.rope_scaling)
        nothing = torch.empty(0, 1, layer.head_dim)
        self._rotation = Rotation(nothing, nothing, self._half)

    def upto(self, stop: int) -> Rotation:
        """Of positions below `stop`, and maybe more."""
        have = self._rotation.num_positions
        if stop > have:
            want = max(stop, 2 * have)
            blocks = range(have // BLOCK_POSITIONS, -(-want // BLOCK_POSITIONS))
            added = [self._block(block * BLOCK_POSITIONS) for block in blocks]
            cos = torch.cat([self._rotation.cos, *(cos for cos, _ in added)])
            sin = torch.cat([self._rotation.sin, *(sin for _, sin in added)])
            self._rotation = Rotation(cos, sin, self._half)
        return self._rotation

    def rows(self, start: int, stop: int) -> RopeRows:
        """Rows of positions start .. stop-1, a view of the table."""
        table = self.upto(stop)
        return RopeRows(table.cos[start:stop], table.sin[start:stop])

    def rows_of(self, spans: list[tuple[int, int]]) -> RopeRows:
        """Rows of several spans (start, stop) of positions, one after another."""
        if len(spans) == 1:
            return self.rows(*spans[0])
        table = self.upto(max(stop for _, stop in spans))
        cos = torch.cat([table.cos[start:stop] for start, stop in spans])
        sin = torch.cat([table.sin[start:stop] for start, stop in spans])
        return RopeRows(cos, sin)

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
