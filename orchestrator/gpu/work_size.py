"""What a head on a card needs there beside weights, keys and values, before anything is loaded."""

from __future__ import annotations

from orchestrator.gpu.areas import MOST_SEQUENCES, HeadShape, areas_bytes
from orchestrator.gpu.attention import Workspace
from placement.kv_size import pages_of
from workers.gpu.grids import grids_bytes
from workers.model_config import Step35Config


def head_work_bytes(config: Step35Config, positions: int, rows: int) -> int:
    """The areas and page tables of `HeadOnCard`, for all layers, and the tables of its weights' types.

    Args:
        positions: of the longest text.
        rows: of a pass.
    """
    layers = config.layers
    pages = pages_of(positions + rows)
    parts = [
        Workspace.num_bytes(
            1,
            layer.num_heads,
            layer.head_dim,
            Workspace.parts_of(positions + rows, config.sliding_window if layer.is_sliding else 0),
        )
        for layer in layers
    ]
    shape = HeadShape(
        hidden=config.hidden_size,
        heads_width=max(layer.num_heads * layer.head_dim for layer in layers),
        projected=max(
            (layer.num_heads + 2 * layer.num_kv_heads) * layer.head_dim + layer.num_heads for layer in layers
        ),
        inner=max(config.intermediate_size, config.share_expert_dim),
        num_experts=config.moe_num_experts,
        top_k=config.moe_top_k,
        parts_bytes=max(parts),
        rope_widths=tuple(layer.head_dim for layer in layers[:2]),
        vocab=config.vocab_size,
    )
    tables = 8 * len(layers) * MOST_SEQUENCES * pages
    return areas_bytes(shape, rows) + tables + grids_bytes()
