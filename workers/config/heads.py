"""Attention's sizes by layer type, in the spellings of published files and of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from workers.config.fields import Fields
from workers.config.layer_types import FULL, SLIDING

MOST_HEADS = 4096
MOST_HEAD_DIM = 8192


@dataclass(frozen=True, slots=True)
class HeadSizes:
    num_heads: int
    num_kv_heads: int
    head_dim: int


def read_heads(fields: Fields, layer_types: Sequence[str], num_trunk: int) -> dict[str, HeadSizes]:
    """Sizes by layer type; sliding layers have the full layers' where nothing else is said."""
    full = HeadSizes(
        fields.integer("num_attention_heads", most=MOST_HEADS),
        fields.integer("num_attention_groups", "num_key_value_heads", most=MOST_HEADS),
        fields.integer("head_dim", most=MOST_HEAD_DIM),
    )
    per_layer = _heads_by_layer(fields, full.num_heads, num_trunk)
    named = fields.get("num_sliding_attention_heads", "swa_num_attention_heads")
    if named is not None:
        fields.check_integer("num_sliding_attention_heads", named, 1, MOST_HEADS)
    other = fields.inner("attention_other_setting")
    if other is None:
        of_layers = None
        if per_layer is not None and SLIDING in layer_types[:num_trunk]:
            of_layers = per_layer[layer_types.index(SLIDING)]
        sliding = HeadSizes(named or of_layers or full.num_heads, full.num_kv_heads, full.head_dim)
    else:
        other.only("attention_type", SLIDING)
        sliding = HeadSizes(
            other.integer("num_attention_heads", default=named or full.num_heads, most=MOST_HEADS),
            other.integer(
                "num_attention_groups", "num_key_value_heads", default=full.num_kv_heads, most=MOST_HEADS
            ),
            other.integer("head_dim", "true_head_dim", default=full.head_dim, most=MOST_HEAD_DIM),
        )
        other.finish()
        if named not in (None, sliding.num_heads):
            raise fields.wrong(
                "num_sliding_attention_heads",
                named,
                f"what attention_other_setting says, {sliding.num_heads}: remove the wrong one",
            )
    heads = {FULL: full, SLIDING: sliding}
    for layer, found in enumerate(per_layer or ()):
        if found != heads[layer_types[layer]].num_heads:
            raise fields.wrong(
                f"per_layer_config.{layer}.num_attention_heads",
                found,
                f"{heads[layer_types[layer]].num_heads}, as in the other layers of type {layer_types[layer]}",
            )
    for name, sizes in (("", full), ("attention_other_setting.", sliding)):
        if sizes.num_heads % sizes.num_kv_heads:
            raise fields.wrong(
                f"{name}num_attention_heads",
                sizes.num_heads,
                f"a multiple of the {sizes.num_kv_heads} groups",
            )
    return heads


def _heads_by_layer(fields: Fields, num_heads: int, num_trunk: int) -> list[int] | None:
    """Head counts as transformers saves them: layers whose count differs, by index; None without them."""
    by_layer = fields.inner("per_layer_config")
    if by_layer is None:
        return None
    heads = []
    for layer in range(num_trunk):
        inner = by_layer.inner(str(layer))
        heads.append(num_heads)
        if inner is not None:
            heads[layer] = inner.integer("num_attention_heads", default=num_heads, most=MOST_HEADS)
            inner.finish()
    by_layer.finish()
    return heads
