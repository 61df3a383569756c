"""Which layers have experts, in the spellings of published files and of transformers."""

from __future__ import annotations

from typing import Any

from workers.config.fields import Fields


def read_moe_layers(fields: Fields, num_trunk: int, num_mtp: int) -> tuple[int, ...]:
    """Absolute indices, from `moe_layers_enum` or from transformers' `mlp_layer_types`."""
    value, kinds = fields.get("moe_layers_enum"), fields.per_layer("mlp_layer_types", num_trunk, 0)
    if kinds is None and value is None:
        raise fields.wrong("moe_layers_enum", None, _expected(num_trunk))
    by_kind = by_index = None
    if kinds is not None:
        for layer, kind in enumerate(kinds):
            if kind not in ("dense", "sparse"):
                raise fields.wrong(f"mlp_layer_types[{layer}]", kind, "'dense' or 'sparse'")
        by_kind = tuple(layer for layer, kind in enumerate(kinds) if kind == "sparse")
    if value is not None:
        by_index = _layer_indices(fields, value, num_trunk)
    if by_kind is not None and by_index is not None and by_kind != by_index:
        raise fields.wrong(
            "mlp_layer_types", kinds, "the layers of moe_layers_enum as 'sparse': remove the wrong one"
        )
    all_kinds, of_mtp = fields.get("mlp_layer_types"), fields.get("mtp_mlp_layer_types")
    tail = all_kinds[num_trunk : num_trunk + num_mtp] if isinstance(all_kinds, list) else []
    if isinstance(of_mtp, list):
        tail += of_mtp[:num_mtp]
    if any(kind != "dense" for kind in tail):
        raise fields.wrong(
            "mtp_mlp_layer_types", tail, "'dense': the MTP layers of this architecture have no experts"
        )
    return by_kind if by_kind is not None else by_index or ()


def _expected(num_trunk: int) -> str:
    return f"layer indices below {num_trunk} as a list or a comma-separated string"


def _layer_indices(fields: Fields, value: Any, num_trunk: int) -> tuple[int, ...]:
    items = [item.strip() for item in value.split(",")] if isinstance(value, str) else value
    error = fields.wrong("moe_layers_enum", value, _expected(num_trunk))
    if not isinstance(items, list):
        raise error
    layers = set()
    for item in items:
        if isinstance(item, str) and item.isascii() and item.isdigit() and len(item) < 10:
            item = int(item)
        elif item == "":
            continue
        if isinstance(item, bool) or not isinstance(item, int) or not 0 <= item < num_trunk:
            raise error
        layers.add(item)
    return tuple(sorted(layers))
