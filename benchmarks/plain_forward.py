"""The trunk of a GGUF model in float64, straight from its definition: the reference for rounding errors.

Weights are those that the gguf library dequantises. Slow and simple: one text, no caches, no blocks. It
shares no arithmetic with the runtime.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from workers.formats.open_model import load_config
from workers.model_config import LayerConfig, Step35Config

Array = NDArray[np.float64]


class PlainModel:
    """`logits` of a text, in float64."""

    def __init__(self, path: Path) -> None:
        self._config: Step35Config = load_config(path)
        self._tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}

    def logits(self, token_ids: Sequence[int]) -> Array:
        """float64 [num_tokens, vocab]."""
        hidden = self._weights("token_embd.weight")[list(token_ids)]
        for index, layer in enumerate(self._config.layers[: self._config.num_hidden_layers]):
            block = f"blk.{index}"
            hidden = hidden + self._attention(block, layer, self._norm(hidden, f"{block}.attn_norm"))
            x = self._norm(hidden, f"{block}.ffn_norm")
            if index in self._config.moe_layers:
                hidden = hidden + self._moe(block, layer, x)
            else:
                hidden = hidden + self._ffn(block, "", x, layer.swiglu_limit_shared)
        logits: Array = self._norm(hidden, "output_norm") @ self._weights("output.weight").T
        return logits

    def _weights(self, name: str) -> Array:
        tensor = self._tensors[name]
        # Not as a numpy.memmap, each slice of which takes long to make.
        values = gguf.quants.dequantize(np.asarray(tensor.data), tensor.tensor_type)
        return np.asarray(values, np.float64).reshape(tuple(reversed(tensor.shape.tolist())))

    def _norm(self, x: Array, name: str) -> Array:
        mean_square = np.square(x).mean(axis=-1, keepdims=True)
        scaled: Array = x / np.sqrt(mean_square + self._config.rms_norm_eps) * self._weights(f"{name}.weight")
        return scaled

    def _attention(self, block: str, layer: LayerConfig, x: Array) -> Array:
        def heads(name: str, count: int) -> Array:
            return (x @ self._weights(f"{block}.{name}.weight").T).reshape(len(x), count, layer.head_dim)

        q = self._rotated(layer, self._norm(heads("attn_q", layer.num_heads), f"{block}.attn_q_norm"))
        k = self._rotated(layer, self._norm(heads("attn_k", layer.num_kv_heads), f"{block}.attn_k_norm"))
        v = heads("attn_v", layer.num_kv_heads)
        group = layer.num_heads // layer.num_kv_heads
        k, v = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(layer.head_dim)
        behind = np.arange(len(x))[:, None] - np.arange(len(x))
        hidden = (behind < 0) | (layer.is_sliding & (behind >= self._config.sliding_window))
        scores[:, hidden] = -np.inf
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        mixed = np.einsum("hqk,khd->qhd", weights / weights.sum(axis=-1, keepdims=True), v)
        gates = _sigmoid(x @ self._weights(f"{block}.attn_gate.weight").T)
        mixed *= gates[:, :, None]
        out: Array = mixed.reshape(len(x), -1) @ self._weights(f"{block}.attn_output.weight").T
        return out

    def _rotated(self, layer: LayerConfig, x: Array) -> Array:
        """By halves, the first `rotary_dim` of each head."""
        half = layer.rotary_dim // 2
        frequencies = layer.rope_theta ** (-np.arange(half) / half)
        if not layer.is_sliding and "rope_freqs.weight" in self._tensors:
            frequencies = frequencies / self._weights("rope_freqs.weight")[:half]
        angles = np.arange(len(x))[:, None, None] * frequencies
        first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
        cos, sin = np.cos(angles), np.sin(angles)
        return np.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)

    def _moe(self, block: str, layer: LayerConfig, x: Array) -> Array:
        scores = _sigmoid(x @ self._weights(f"{block}.ffn_gate_inp.weight").T)
        ranked = np.argsort(-(scores + self._weights(f"{block}.exp_probs_b.bias")), axis=-1, kind="stable")
        chosen = ranked[:, : self._config.moe_top_k]
        shares = np.take_along_axis(scores, chosen, axis=-1)
        shares *= self._config.moe_router_scaling_factor / shares.sum(axis=-1, keepdims=True)
        gate, up, down = (self._weights(f"{block}.ffn_{part}_exps.weight") for part in ("gate", "up", "down"))
        out = self._ffn(block, "_shexp", x, layer.swiglu_limit_shared)
        for row, (experts, weights) in enumerate(zip(chosen, shares, strict=True)):
            for expert, weight in zip(experts, weights, strict=True):
                inner = _swiglu(x[row] @ gate[expert].T, x[row] @ up[expert].T, layer.swiglu_limit)
                out[row] += weight * (inner @ down[expert].T)
        return out

    def _ffn(self, block: str, kind: str, x: Array, limit: float) -> Array:
        gate, up, down = (
            self._weights(f"{block}.ffn_{part}{kind}.weight") for part in ("gate", "up", "down")
        )
        out: Array = _swiglu(x @ gate.T, x @ up.T, limit) @ down.T
        return out


def _sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def _swiglu(gate: Array, up: Array, limit: float) -> Array:
    """silu first, clamp after; a limit of 0 is none."""
    activated = gate * _sigmoid(gate)
    if limit > 0:
        activated, up = np.minimum(activated, limit), np.clip(up, -limit, limit)
    return activated * up
