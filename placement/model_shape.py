"""The sizes of a Mixture-of-Experts model: all that planning and cost estimates need, without weights."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from placement.errors import InputError
from placement.files.quote import quote

MOST_EXPERTS = 65_535
"""Of a layer: routing files number them in 16 bits, and one number stands for none."""
MOST_LAYERS = 1024
"""Several times those of any model there is."""
MOST_POSITIONS = 2**30
"""Of a text."""

_FLOAT32_BYTES = 4


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """Attention of one layer. `window` is the number of keys a query sees, 0 for all earlier ones."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    window: int
    has_head_gate: bool

    @property
    def is_sliding(self) -> bool:
        return self.window > 0

    def parameters(self, hidden_size: int) -> int:
        """Weights of q, k, v and o projections, the per-head gate, and the q and k norms."""
        query_size = self.num_heads * self.head_dim
        kv_size = self.num_kv_heads * self.head_dim
        gate = self.num_heads * hidden_size if self.has_head_gate else 0
        return hidden_size * (2 * query_size + 2 * kv_size) + gate + 2 * self.head_dim


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of a model of the Step-3.5 architecture.

    `attention` holds one entry a layer, first the `num_hidden_layers` of the trunk, then the
    `num_mtp_layers` draft layers. `moe_layers` are absolute layer indices, ascending; every array of
    routing statistics or placement has one row for each of them. Layers outside it are dense.
    `shared_intermediate_size` 0 means that there is no shared expert. `max_positions`: the longest text it
    was made for.
    """

    name: str
    hidden_size: int
    vocab_size: int
    moe_layers: tuple[int, ...]
    num_experts: int
    top_k: int
    moe_intermediate_size: int
    shared_intermediate_size: int
    dense_intermediate_size: int
    attention: tuple[AttentionShape, ...]
    num_mtp_layers: int
    max_positions: int = 2**31 - 1

    @property
    def num_hidden_layers(self) -> int:
        return len(self.attention) - self.num_mtp_layers

    @property
    def num_moe_layers(self) -> int:
        return len(self.moe_layers)

    @property
    def num_dense_layers(self) -> int:
        return self.num_hidden_layers - self.num_moe_layers

    @property
    def num_routed_experts(self) -> int:
        """Routed experts in all layers together."""
        return self.num_moe_layers * self.num_experts

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of all that routing and expert sizes depend on; the name does not count."""
        relevant = [
            self.hidden_size,
            list(self.moe_layers),
            self.num_experts,
            self.top_k,
            self.moe_intermediate_size,
        ]
        return hashlib.sha256(json.dumps(relevant).encode()).hexdigest()[:16]

    # Parameters. A SwiGLU block of width I has three matrices of hidden_size x I.

    @property
    def expert_parameters(self) -> int:
        return 3 * self.hidden_size * self.moe_intermediate_size

    @property
    def shared_expert_parameters(self) -> int:
        """Of one layer."""
        return 3 * self.hidden_size * self.shared_intermediate_size

    @property
    def dense_ffn_parameters(self) -> int:
        """Of one layer."""
        return 3 * self.hidden_size * self.dense_intermediate_size

    @property
    def router_parameters(self) -> int:
        """Of one layer: the gate's matrix and the selection bias."""
        return self.num_experts * (self.hidden_size + 1)

    @property
    def lm_head_parameters(self) -> int:
        return self.vocab_size * self.hidden_size

    @property
    def embedding_parameters(self) -> int:
        return self.vocab_size * self.hidden_size

    @property
    def attention_parameters(self) -> int:
        """Of all trunk layers together."""
        return sum(a.parameters(self.hidden_size) for a in self.attention[: self.num_hidden_layers])

    @property
    def head_read_parameters(self) -> int:
        """What one decode step of the trunk reads on the head whatever the routing.

        Attention, dense layers, shared experts, routers, norms and lm_head; of the embedding only one
        row a token is read, so it does not count.
        """
        norms = (2 * self.num_hidden_layers + 1) * self.hidden_size
        return (
            self.attention_parameters
            + self.num_dense_layers * self.dense_ffn_parameters
            + self.num_moe_layers * (self.shared_expert_parameters + self.router_parameters)
            + self.lm_head_parameters
            + norms
        )

    def mtp_layer_parameters(self, index: int) -> int:
        """Of draft layer `index` (0 first): decoder layer, input projection, own head, norms."""
        attention = self.attention[self.num_hidden_layers + index].parameters(self.hidden_size)
        projection = 2 * self.hidden_size * self.hidden_size
        norms = 5 * self.hidden_size
        return attention + self.dense_ffn_parameters + projection + self.lm_head_parameters + norms

    @property
    def trunk_head_parameters(self) -> int:
        """What the head keeps in memory without drafts: what a step reads, and the embedding."""
        return self.head_read_parameters + self.embedding_parameters

    @property
    def head_parameters(self) -> int:
        """All that the head may keep in memory, the draft layers included."""
        return self.trunk_head_parameters + sum(map(self.mtp_layer_parameters, range(self.num_mtp_layers)))

    # Bytes.

    def expert_bytes(self, bits_per_weight: float) -> int:
        """Bytes of one routed expert. The bits include a format's scales (`WeightFormat.bits`)."""
        return math.ceil(self.expert_parameters * bits_per_weight / 8)

    def activation_bytes(self, num_rows: int) -> int:
        """What a pass keeps beside weights and caches, in float32: its widest layer, and some logits."""
        attention = max(a.num_heads * a.head_dim + 2 * a.num_kv_heads * a.head_dim for a in self.attention)
        widest = max(
            attention,
            2 * self.dense_intermediate_size,
            2 * self.top_k * self.moe_intermediate_size + self.hidden_size,
        )
        return _FLOAT32_BYTES * (num_rows * (4 * self.hidden_size + widest) + 4 * self.vocab_size)


def _step_3_5_flash() -> ModelShape:
    full = AttentionShape(num_heads=64, num_kv_heads=8, head_dim=128, window=0, has_head_gate=True)
    sliding = AttentionShape(num_heads=96, num_kv_heads=8, head_dim=128, window=512, has_head_gate=True)
    trunk = tuple(full if layer % 4 == 0 else sliding for layer in range(45))
    return ModelShape(
        name="step-3.5-flash",
        hidden_size=4096,
        vocab_size=128896,
        moe_layers=tuple(range(3, 45)),
        num_experts=288,
        top_k=8,
        moe_intermediate_size=1280,
        shared_intermediate_size=1280,
        dense_intermediate_size=11264,
        attention=(*trunk, sliding, sliding, sliding),
        num_mtp_layers=3,
        max_positions=262_144,
    )


STEP_3_5_FLASH = _step_3_5_flash()

PUBLISHED_SHAPES: Mapping[str, ModelShape] = MappingProxyType({STEP_3_5_FLASH.name: STEP_3_5_FLASH})


def published_shape(name: str) -> ModelShape:
    """The built-in shape of a published model.

    Raises:
        InputError: no such name; the message lists the known ones.
    """
    try:
        return PUBLISHED_SHAPES[name.lower()]
    except KeyError:
        known = ", ".join(sorted(PUBLISHED_SHAPES))
        raise InputError(
            f"model {quote(name)} is not built in, and no file of that name is here: expected {known}, a "
            "model directory, or a GGUF file"
        ) from None
