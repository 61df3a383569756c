"""Routing of real models, measured by others (tests/placement/fixtures/README.md)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from placement.given.stats import RoutingStats
from placement.model_shape import AttentionShape, ModelShape

FIXTURES = Path(__file__).parent / "fixtures"


def other_model(name: str, num_layers: int, num_experts: int, top_k: int) -> ModelShape:
    """A model of another family whose layers are all MoE layers, as far as routing is concerned."""
    attention = AttentionShape(num_heads=1, num_kv_heads=1, head_dim=1, window=0, has_head_gate=False)
    return ModelShape(
        name=name,
        hidden_size=2048,
        vocab_size=50304,
        moe_layers=tuple(range(num_layers)),
        num_experts=num_experts,
        top_k=top_k,
        moe_intermediate_size=1024,
        shared_intermediate_size=0,
        dense_intermediate_size=0,
        attention=(attention,) * num_layers,
        num_mtp_layers=0,
    )


OLMOE = other_model("olmoe-1b-7b", 16, 64, 8)
MIXTRAL = other_model("mixtral-8x7b", 32, 8, 2)


def olmoe_documents(domain: str) -> NDArray[np.uint16]:
    """uint16 [100 documents, 16, 64], 64 tokens each; `domain` is "general" or "coding"."""
    with np.load(FIXTURES / f"olmoe-{domain}.npz") as arrays:
        counts: NDArray[np.uint16] = arrays["counts"]
    return counts


def olmoe_stats(domain: str) -> RoutingStats:
    documents = olmoe_documents(domain)
    return RoutingStats.from_counts(OLMOE, documents.sum(axis=0), 64 * len(documents), f"OLMoE {domain}")
