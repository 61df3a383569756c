"""One decoder layer: attention and a dense or mixture-of-experts block, each added to the residual."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from orchestrator import kernels
from orchestrator.kernels import PassRows, Rotation
from orchestrator.model.attention import AttentionWeights, attention
from orchestrator.model.finite import broken, may_be_broken
from orchestrator.model.moe import ExpertRunner, FfnWeights, MoeWeights, moe
from orchestrator.model.routing_recorder import Recorder
from orchestrator.timing import StepTimer
from placement.errors import NonFiniteError
from workers import fixed_point


@dataclass(frozen=True, slots=True)
class NormWeights:
    """RMSNorm: float32 [size]; `zero_centered` means the row is multiplied by (1 + weight)."""

    weight: Tensor
    eps: float
    zero_centered: bool

    def forward(self, x: Tensor) -> Tensor:
        """float32 [num_tokens, size] -> the same shape."""
        return kernels.rms_norm(x, self.weight, self.eps, self.zero_centered)


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """The head's tensors of one decoder layer. `index` is absolute, as in the checkpoint's names."""

    index: int
    attention_norm: NormWeights
    attention: AttentionWeights
    ffn_norm: NormWeights
    ffn: FfnWeights | MoeWeights


def decoder_layer(
    weights: LayerWeights,
    hidden_states: Tensor,
    rotation: Rotation,
    rows: PassRows,
    cache_layer: int,
    experts: ExpertRunner,
    timer: StepTimer,
    recorder: Recorder | None = None,
) -> Tensor:
    """float32 [num_tokens, hidden] -> the same shape; `cache_layer` is this layer's place in the caches.

    Raises:
        NonFiniteError: weights are broken; names the layer and the part.
    """
    with timer.part("attention"):
        normed = weights.attention_norm.forward(hidden_states)
        attended = attention(weights.attention, normed, rotation, rows, cache_layer)
        residual = attended.add_(hidden_states)
        scale_exponents = fixed_point.scale_exponents(residual)
    if may_be_broken(scale_exponents) and not torch.isfinite(residual).all():
        raise who_broke(weights.index, hidden_states)
    if isinstance(weights.ffn, MoeWeights):
        with timer.part("router"):
            normed = weights.ffn_norm.forward(residual)
        return moe(weights.ffn, residual, normed, scale_exponents, weights.index, experts, timer, recorder)
    with timer.part("dense_ffn"):
        return weights.ffn.forward(weights.ffn_norm.forward(residual)).add_(residual)


def ffn_of(layer: int) -> str:
    """What a layer adds besides its attention and its routed experts, for messages."""
    return f"layer {layer}: its shared expert or dense FFN"


def who_broke(layer: int, hidden_states: Tensor) -> NonFiniteError:
    """Of a layer whose attention has left rows that are not finite; `hidden_states` went in."""
    if torch.isfinite(hidden_states).all():
        return broken(f"layer {layer}: its attention")
    return broken(ffn_of(layer - 1) if layer else "the embedding of tokens")
