"""RoPE of each layer, in the spellings that published files and transformers use.

`rope_scaling` and a flat `rope_parameters` are one setting for the layer types in `yarn_only_types`; a nested
`rope_parameters` has one object for each layer type. Base and rotated part stand there or in the per-layer
lists `rope_theta` and `partial_rotary_factors`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from workers.config.fields import Fields
from workers.config.layer_types import FULL, LAYER_TYPES, SLIDING


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """llama3 scaling: static, by wavelength."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True, slots=True)
class RopeDivisors:
    """Scaling given as what each rotated pair's frequency is divided by."""

    divisors: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class LayerRope:
    """One layer's base, rotated part of a head and scaling (None: none)."""

    theta: float
    partial_rotary_factor: float
    scaling: RopeScaling | None


@dataclass(frozen=True, slots=True)
class _Setting:
    """One RoPE object of the file; None for what it leaves open."""

    has_type: bool
    scaling: RopeScaling | None
    theta: Any
    partial_rotary_factor: Any


_NOTHING = _Setting(False, None, None, None)


def read_rope(fields: Fields, layer_types: Sequence[str], num_trunk: int) -> list[LayerRope]:
    """RoPE of every layer, MTP layers after the trunk.

    An MTP layer that the lists do not reach takes what the trunk's layers of its type have.

    Raises:
        CheckpointError: a setting is missing, wrong or unknown, or two spellings disagree; names it.
    """
    num_mtp = len(layer_types) - num_trunk
    scaled_types = _scaled_types(fields)
    by_type = _settings(fields, layer_types, scaled_types)
    thetas = fields.agree(
        [
            ("rope_theta", fields.per_layer("rope_theta", num_trunk, num_mtp)),
            (
                "rope_parameters.rope_theta",
                [_entry(by_type[kind].theta, layer) for layer, kind in enumerate(layer_types)],
            ),
        ]
    )
    shared_factor = fields.get("partial_rotary_factor")
    factors = fields.agree(
        [
            ("partial_rotary_factors", fields.per_layer("partial_rotary_factors", num_trunk, num_mtp)),
            ("partial_rotary_factor", [shared_factor] * len(layer_types)),
            (
                "rope_parameters.partial_rotary_factor",
                [
                    _entry(by_type[kind].partial_rotary_factor, layer)
                    for layer, kind in enumerate(layer_types)
                ],
            ),
        ]
    )
    assert thetas is not None
    assert factors is not None
    if all(factor is None for factor in factors):
        factors = [1.0] * len(layer_types)
    for values in (thetas, factors):
        _fill_mtp(values, layer_types, num_trunk)
    return [
        LayerRope(
            theta=fields.check_number(f"rope_theta[{layer}]", thetas[layer], positive=True),
            partial_rotary_factor=fields.check_number(f"partial_rotary_factors[{layer}]", factors[layer]),
            scaling=by_type[kind].scaling,
        )
        for layer, kind in enumerate(layer_types)
    ]


def _settings(
    fields: Fields, layer_types: Sequence[str], scaled_types: frozenset[str] | None
) -> dict[str, _Setting]:
    """The setting of each layer type that occurs."""
    legacy = fields.inner("rope_scaling")
    scaling = _read(legacy) if legacy is not None else _NOTHING
    parameters = fields.inner("rope_parameters")
    if parameters is not None and any(kind in parameters.names() for kind in LAYER_TYPES):
        return _nested_settings(fields, parameters, scaling, layer_types, scaled_types)
    flat = _read(parameters) if parameters is not None else _NOTHING
    if scaling.has_type and flat.has_type and scaling.scaling != flat.scaling:
        raise fields.wrong(
            "rope_parameters", fields.get("rope_parameters"), "the same as rope_scaling: remove the wrong one"
        )
    found = flat if flat.has_type else scaling
    return {
        kind: _Setting(
            found.has_type,
            found.scaling if scaled_types is None or kind in scaled_types else None,
            flat.theta if flat.theta is not None else scaling.theta,
            flat.partial_rotary_factor
            if flat.partial_rotary_factor is not None
            else scaling.partial_rotary_factor,
        )
        for kind in set(layer_types)
    }


def _nested_settings(
    fields: Fields,
    parameters: Fields,
    legacy: _Setting,
    layer_types: Sequence[str],
    scaled_types: frozenset[str] | None,
) -> dict[str, _Setting]:
    settings = {}
    for kind in LAYER_TYPES:
        inner = parameters.inner(kind)
        if inner is not None:
            settings[kind] = _read(inner)
        elif kind in layer_types:
            raise parameters.wrong(kind, None, "an object, as layer_types has such layers")
    parameters.finish()
    for kind, setting in settings.items():
        if setting.scaling is not None and scaled_types is not None and kind not in scaled_types:
            raise fields.wrong(
                f"rope_parameters.{kind}.rope_type",
                "llama3",
                "'default', or yarn_only_types with that layer type",
            )
        if legacy.has_type and setting.scaling not in (None, legacy.scaling):
            raise fields.wrong(
                "rope_scaling",
                fields.get("rope_scaling"),
                f"the same as rope_parameters.{kind}: remove the wrong one",
            )
    if legacy.scaling is not None and all(setting.scaling is None for setting in settings.values()):
        raise fields.wrong(
            "rope_scaling", fields.get("rope_scaling"), "the same as rope_parameters: remove the wrong one"
        )
    return settings


def _scaled_types(fields: Fields) -> frozenset[str] | None:
    """The layer types that a flat setting scales, None for all."""
    value = fields.get("yarn_only_types")
    if value is None or value == []:
        return None
    if not isinstance(value, list) or not all(kind in LAYER_TYPES for kind in value):
        raise fields.wrong("yarn_only_types", value, f"a list of {FULL!r} and {SLIDING!r}")
    return frozenset(value)


def _read(rope: Fields) -> _Setting:
    kind = rope.get("rope_type", "type")
    if kind not in (None, "default", "llama3"):
        raise rope.wrong("rope_type", kind, "'llama3' or 'default': Potluck computes nothing else")
    scaling = None
    if kind == "llama3":
        low = rope.number("low_freq_factor", positive=True)
        high = rope.number("high_freq_factor", positive=True)
        if high <= low:
            raise rope.wrong("high_freq_factor", high, f"more than low_freq_factor, {low:g}")
        scaling = RopeScaling(
            factor=rope.number("factor", positive=True),
            low_freq_factor=low,
            high_freq_factor=high,
            original_max_position_embeddings=rope.integer("original_max_position_embeddings"),
        )
    elif kind is None and rope.get("factor") is not None:
        raise rope.wrong("rope_type", None, "'llama3' or 'default', as there is a factor")
    # Without scaling this length is not used.
    rope.get("original_max_position_embeddings")
    setting = _Setting(kind is not None, scaling, rope.get("rope_theta"), rope.get("partial_rotary_factor"))
    rope.finish()
    return setting


def _entry(value: Any, layer: int) -> Any:
    """A layer's part of one value for all layers or of a list, None past its end."""
    if not isinstance(value, list):
        return value
    return value[layer] if layer < len(value) else None


def _fill_mtp(values: list[Any], layer_types: Sequence[str], num_trunk: int) -> None:
    for layer in range(num_trunk, len(layer_types)):
        if values[layer] is None:
            same_type = (
                value
                for value, kind in zip(values[:num_trunk], layer_types, strict=False)
                if kind == layer_types[layer]
            )
            values[layer] = next(same_type, None)
