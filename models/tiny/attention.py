"""Gated grouped-query attention over whole training sequences (no cache)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from models.tiny.config import FULL, TinyConfig

QUERY_BLOCK = 128


class _RMSNorm(torch.autograd.Function):
    """x / rms(x) * scale in float32, rounded once to x's dtype; fewer passes than autograd's own chain."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, eps: float) -> Tensor:
        wide = x.float()
        inverse = wide.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
        normed = wide.mul(inverse)
        ctx.save_for_backward(normed, inverse, scale)
        ctx.dtype = x.dtype
        return normed.mul(scale).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        normed, inverse, scale = ctx.saved_tensors
        grad = grad.float()
        grad_normed = grad * normed
        grad_scale = grad_normed.flatten(0, -2).sum(0)
        mean = grad_normed.mul_(scale).mean(-1, keepdim=True)
        grad_x = grad.mul(scale).addcmul_(normed, mean, value=-1).mul_(inverse)
        return grad_x.to(ctx.dtype), grad_scale, None


class RMSNorm(nn.Module):
    """Zero-centred RMSNorm in float32: multiplies by (1 + weight); the weight stays float32."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = _RMSNorm.apply(x, 1.0 + self.weight, self.eps)  # type: ignore[no-untyped-call]
        return out


def llama3_inverse_frequencies(inv_freq: Tensor, scaling: Mapping[str, Any]) -> Tensor:
    """Slows the low frequencies as rope_type llama3 does, without an attention factor.

    Args:
        inv_freq: [rotary_dim / 2] float32.
        scaling: config.json's `rope_scaling`.

    Returns:
        [rotary_dim / 2] float32.
    """
    original = scaling["original_max_position_embeddings"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = original * inv_freq / (2 * math.pi)
    smooth: Tensor = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    slowed: Tensor = inv_freq / scaling["factor"]
    return smooth * inv_freq + (1 - smooth) * slowed


def rope_tables(config: TinyConfig, layer: int, length: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of one layer's rotation, each [length, rotary_dim / 2] float32."""
    rotary_dim = int(config.head_dim * config.partial_rotary_factors[layer])
    exponent = torch.arange(0, rotary_dim, 2, dtype=torch.float32) / rotary_dim
    inv_freq = torch.pow(config.rope_theta[layer], -exponent)
    if config.layer_types[layer] in config.yarn_only_types:
        inv_freq = llama3_inverse_frequencies(inv_freq, config.rope_scaling)
    angles = torch.arange(length, dtype=torch.float32)[:, None] * inv_freq
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates the first 2 * cos.shape[-1] dimensions by halves, leaving the rest.

    Args:
        x: [batch, length, heads, head_dim].
        cos, sin: [length, rotary_dim / 2].
    """
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    cos, sin = cos[:, None].to(x.dtype), sin[:, None].to(x.dtype)
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)


def causal_attention(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Causal attention in which position p sees p - window + 1 ... p.

    Blocks of queries meet only the keys that some query of the block may see. Plain products and a softmax
    train about twice as fast on a CPU as the fused kernel, whose backward is slow.

    Args:
        q: [batch, groups, heads / groups, length, head_dim].
        k, v: [batch, groups, length, head_dim].

    Returns:
        [batch, groups, heads / groups, length, head_dim].
    """
    batch, groups, per_group, length, dim = q.shape
    q = q * dim**-0.5
    blocks = []
    for start in range(0, length, QUERY_BLOCK):
        end, first = min(start + QUERY_BLOCK, length), max(0, start - window + 1)
        query = torch.arange(start, end)[:, None]
        key = torch.arange(first, end)[None, :]
        hidden = (key > query) | (key <= query - window)
        mask = torch.zeros(hidden.shape, dtype=q.dtype).masked_fill_(hidden, -torch.inf)
        rows = q[:, :, :, start:end].reshape(batch * groups, -1, dim)
        scores = rows @ k[:, :, first:end].reshape(batch * groups, -1, dim).transpose(1, 2)
        probs = (scores.view(batch, groups, per_group, end - start, -1) + mask).softmax(-1)
        out = probs.view_as(scores) @ v[:, :, first:end].reshape(batch * groups, -1, dim)
        blocks.append(out.view(batch, groups, per_group, end - start, dim))
    return torch.cat(blocks, dim=3)


class Attention(nn.Module):
    """q/k-normed grouped-query attention with one sigmoid gate a head and token."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: TinyConfig, layer: int) -> None:
        super().__init__()
        self.heads, self.groups = config.heads(layer), config.num_attention_groups
        self.head_dim = config.head_dim
        self.window = None if config.layer_types[layer] == FULL else config.sliding_window
        hidden = config.hidden_size
        self.q_proj = nn.Linear(hidden, self.heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(hidden, self.groups * self.head_dim, bias=False)
        self.v_proj = nn.Linear(hidden, self.groups * self.head_dim, bias=False)
        self.o_proj = nn.Linear(self.heads * self.head_dim, hidden, bias=False)
        self.g_proj = nn.Linear(hidden, self.heads, bias=False)
        self.q_norm = RMSNorm(self.head_dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(self.head_dim, config.rms_norm_eps)
        cos, sin = rope_tables(config, layer, config.max_position_embeddings)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Attends within each sequence; x and the result are [batch, length, hidden]."""
        batch, length, _ = x.shape
        cos, sin = self.cos[:length], self.sin[:length]
        q = rotate(self.q_norm(self.q_proj(x).view(batch, length, self.heads, -1)), cos, sin)
        k = rotate(self.k_norm(self.k_proj(x).view(batch, length, self.groups, -1)), cos, sin)
        v = self.v_proj(x).view(batch, length, self.groups, -1)
        q = q.view(batch, length, self.groups, self.heads // self.groups, -1).permute(0, 2, 3, 1, 4)
        out = causal_attention(q, k.transpose(1, 2), v.transpose(1, 2), self.window or length)
        out = out.permute(0, 3, 1, 2, 4).reshape(batch, length, self.heads, -1)
        out = out * self.g_proj(x).sigmoid()[..., None]
        mixed: Tensor = self.o_proj(out.reshape(batch, length, -1))
        return mixed
