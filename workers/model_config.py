"""A Step-3.5 model's config.json as one frozen dataclass."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from placement.errors import CheckpointError
from placement.model_shape import AttentionShape, ModelShape

FULL, SLIDING = "full_attention", "sliding_attention"
# vLLM and the published implementation use this when the file says nothing.
DEFAULT_RMS_NORM_EPS = 1e-5


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """llama3 scaling: static, by wavelength."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True, slots=True)
class LayerConfig:
    """One layer, trunk or MTP.

    Attributes:
        index: absolute, as in tensor names; MTP layers follow the trunk.
        rotary_dim: how many of head_dim dimensions rotate, an even number.
        rope_scaling: None where llama3 scaling does not apply.
        is_moe: routed and shared experts; otherwise a dense FFN.
        swiglu_limit: clamp of the routed experts, 0 for none.
        swiglu_limit_shared: clamp of the shared expert or the dense FFN, 0 for none.
    """

    index: int
    is_sliding: bool
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float
    rotary_dim: int
    rope_scaling: RopeScaling | None
    is_moe: bool
    swiglu_limit: float
    swiglu_limit_shared: float


@dataclass(frozen=True, slots=True)
class Step35Config:
    """The model's sizes and settings, under the published field names.

    Attributes:
        eos_token_ids: every end token, possibly none.
        moe_layers: absolute indices of the MoE layers, ascending.
        zero_centered: RMSNorm multiplies by 1 + weight.
        layers: the trunk's num_hidden_layers, then the num_nextn_predict_layers MTP layers.
    """

    hidden_size: int
    num_hidden_layers: int
    num_nextn_predict_layers: int
    vocab_size: int
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    rms_norm_eps: float
    intermediate_size: int
    moe_layers: tuple[int, ...]
    moe_num_experts: int
    moe_top_k: int
    moe_intermediate_size: int
    share_expert_dim: int
    moe_router_scaling_factor: float
    norm_expert_weight: bool
    use_moe_router_bias: bool
    sliding_window: int
    max_position_embeddings: int
    use_head_wise_attn_gate: bool
    zero_centered: bool
    tie_word_embeddings: bool
    layers: tuple[LayerConfig, ...]

    @classmethod
    def load(cls, model_dir: str | Path) -> Step35Config:
        """Read `model_dir`/config.json: model_type step3p5, or step3p7 and its text_config.

        Raises:
            CheckpointError: no such file, another architecture, or a field that is missing or wrong.
        """
        path = Path(model_dir) / "config.json"
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CheckpointError(f"{path} does not exist: expected a Hugging Face model directory") from None
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} cannot be read as JSON: {error}") from None
        return _parse(_Fields(path, _text_config(path, document)))

    def shape(self, name: str) -> ModelShape:
        """What planning needs to know of this model, under the given name."""
        return ModelShape(
            name=name,
            hidden_size=self.hidden_size,
            vocab_size=self.vocab_size,
            moe_layers=self.moe_layers,
            num_experts=self.moe_num_experts,
            top_k=self.moe_top_k,
            moe_intermediate_size=self.moe_intermediate_size,
            shared_intermediate_size=self.share_expert_dim,
            dense_intermediate_size=self.intermediate_size,
            attention=tuple(
                AttentionShape(
                    num_heads=layer.num_heads,
                    num_kv_heads=layer.num_kv_heads,
                    head_dim=layer.head_dim,
                    window=self.sliding_window if layer.is_sliding else 0,
                    has_head_gate=self.use_head_wise_attn_gate,
                )
                for layer in self.layers
            ),
            num_mtp_layers=self.num_nextn_predict_layers,
            max_positions=self.max_position_embeddings,
        )


def _text_config(path: Path, document: Any) -> dict[str, Any]:
    model_type = document.get("model_type") if isinstance(document, dict) else None
    if model_type == "step3p5":
        return dict(document)
    if model_type == "step3p7" and isinstance(document.get("text_config"), dict):
        outer = {key: document[key] for key in ("bos_token_id", "eos_token_id") if key in document}
        text: dict[str, Any] = document["text_config"]
        return outer | text
    raise CheckpointError(
        f"{path}: model_type is {model_type!r}, expected 'step3p5' or 'step3p7' with a text_config: "
        "Potluck runs models of the Step-3.5 architecture"
    )


class _Fields:
    """Typed access to config.json; every complaint names the file and the field."""

    def __init__(self, path: Path, values: dict[str, Any]) -> None:
        self.path = path
        self.values = values

    def wrong(self, name: str, found: Any, expected: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: {name} is {found!r}, expected {expected}")

    def get(self, name: str) -> Any:
        """None for an absent field and for null alike."""
        return self.values.get(name)

    def integer(self, name: str, default: int | None = None, least: int = 1) -> int:
        value = self.get(name)
        if value is None and default is not None:
            return default
        return self.check_integer(name, value, least)

    def check_integer(self, name: str, value: Any, least: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise self.wrong(name, value, f"an integer of at least {least}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value = self.get(name)
        if value is None and default is not None:
            return default
        return self.check_number(name, value)

    def check_number(self, name: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
            raise self.wrong(name, value, "a number, 0 or larger")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(name, value, "true or false")
        return value

    def word(self, name: str, expected: str) -> None:
        """Refuse a setting of another architecture; absent means the expected one."""
        value = self.get(name)
        if value is not None and value != expected:
            raise self.wrong(name, value, f"{expected!r}: Potluck computes nothing else")

    def per_layer(self, name: str, num_layers: int, default: Any = None) -> list[Any]:
        """A list with one entry a layer, MTP layers included, or one scalar for all."""
        value = self.get(name)
        if value is None:
            value = default
        if not isinstance(value, list):
            return [value] * num_layers
        if len(value) < num_layers:
            raise self.wrong(
                name,
                value,
                f"{num_layers} entries (num_hidden_layers + num_nextn_predict_layers), found {len(value)}",
            )
        return value[:num_layers]


def _parse(fields: _Fields) -> Step35Config:
    num_hidden_layers = fields.integer("num_hidden_layers")
    num_mtp_layers = fields.integer("num_nextn_predict_layers", default=0, least=0)
    fields.word("hidden_act", "silu")
    fields.word("moe_router_activation", "sigmoid")
    moe_layers = _moe_layers(fields, num_hidden_layers)
    layers = _layers(fields, num_hidden_layers + num_mtp_layers, frozenset(moe_layers))
    num_experts, top_k = fields.integer("moe_num_experts"), fields.integer("moe_top_k")
    if top_k > num_experts:
        raise fields.wrong("moe_top_k", top_k, f"at most moe_num_experts, {num_experts}")
    any_sliding = any(layer.is_sliding for layer in layers)
    positions = (
        "max_position_embeddings" if fields.get("max_position_embeddings") is not None else "max_seq_len"
    )
    return Step35Config(
        hidden_size=fields.integer("hidden_size"),
        num_hidden_layers=num_hidden_layers,
        num_nextn_predict_layers=num_mtp_layers,
        vocab_size=fields.integer("vocab_size"),
        bos_token_id=None if fields.get("bos_token_id") is None else fields.integer("bos_token_id", least=0),
        eos_token_ids=_eos_token_ids(fields),
        rms_norm_eps=fields.number("rms_norm_eps", DEFAULT_RMS_NORM_EPS),
        intermediate_size=fields.integer("intermediate_size"),
        moe_layers=moe_layers,
        moe_num_experts=num_experts,
        moe_top_k=top_k,
        moe_intermediate_size=fields.integer("moe_intermediate_size"),
        share_expert_dim=fields.integer("share_expert_dim"),
        moe_router_scaling_factor=fields.number("moe_router_scaling_factor", 1.0),
        norm_expert_weight=fields.flag("norm_expert_weight", True),
        use_moe_router_bias=fields.flag("use_moe_router_bias", False),
        sliding_window=fields.integer("sliding_window") if any_sliding else 0,
        max_position_embeddings=fields.integer(positions),
        use_head_wise_attn_gate=fields.flag("use_head_wise_attn_gate", False),
        zero_centered=fields.flag("zero_centered", True),
        tie_word_embeddings=fields.flag("tie_word_embeddings", False),
        layers=layers,
    )


def _eos_token_ids(fields: _Fields) -> tuple[int, ...]:
    value = fields.get("eos_token_id")
    values = value if isinstance(value, list) else [] if value is None else [value]
    return tuple(fields.check_integer("eos_token_id", item, 0) for item in values)


def _moe_layers(fields: _Fields, num_hidden_layers: int) -> tuple[int, ...]:
    value = fields.get("moe_layers_enum")
    expected = f"layer indices below {num_hidden_layers} as a list or a comma-separated string"
    items = value.split(",") if isinstance(value, str) else value
    if not isinstance(items, list):
        raise fields.wrong("moe_layers_enum", value, expected)
    try:
        layers = sorted({int(item) for item in items if str(item).strip()})
    except (TypeError, ValueError):
        raise fields.wrong("moe_layers_enum", value, expected) from None
    if layers and not 0 <= layers[0] <= layers[-1] < num_hidden_layers:
        raise fields.wrong("moe_layers_enum", value, expected)
    return tuple(layers)


def _rope_scaling(fields: _Fields) -> RopeScaling | None:
    value = fields.get("rope_scaling")
    if value is None:
        return None
    if not isinstance(value, dict):
        raise fields.wrong("rope_scaling", value, "an object or null")
    kind = value.get("rope_type", value.get("type"))
    if kind == "default":
        return None
    if kind != "llama3":
        raise fields.wrong("rope_scaling.rope_type", kind, "'llama3' or 'default'")
    inner = _Fields(fields.path, {f"rope_scaling.{key}": item for key, item in value.items()})
    return RopeScaling(
        factor=inner.number("rope_scaling.factor"),
        low_freq_factor=inner.number("rope_scaling.low_freq_factor"),
        high_freq_factor=inner.number("rope_scaling.high_freq_factor"),
        original_max_position_embeddings=inner.integer("rope_scaling.original_max_position_embeddings"),
    )


def _layers(fields: _Fields, num_layers: int, moe_layers: frozenset[int]) -> tuple[LayerConfig, ...]:
    layer_types = fields.per_layer("layer_types", num_layers)
    thetas = fields.per_layer("rope_theta", num_layers)
    factors = fields.per_layer("partial_rotary_factors", num_layers, default=1.0)
    limits = fields.per_layer("swiglu_limits", num_layers, default=0.0)
    limits_shared = fields.per_layer("swiglu_limits_shared", num_layers, default=0.0)
    scaling = _rope_scaling(fields)
    scaled_types = fields.get("yarn_only_types") or [FULL, SLIDING]
    names = ("num_attention_heads", "num_attention_groups", "head_dim")
    other = fields.get("attention_other_setting") or {}
    if not isinstance(other, dict):
        raise fields.wrong("attention_other_setting", other, "an object or null")
    sizes = {FULL: [fields.integer(name) for name in names]}
    sizes[SLIDING] = [
        fields.check_integer(f"attention_other_setting.{name}", other.get(name, size), 1)
        for name, size in zip(names, sizes[FULL], strict=True)
    ]
    for num_heads, num_kv_heads, _ in sizes.values():
        if num_heads % num_kv_heads:
            raise fields.wrong("num_attention_heads", num_heads, f"a multiple of the {num_kv_heads} groups")

    layers = []
    for index, layer_type in enumerate(layer_types):
        if layer_type not in (FULL, SLIDING):
            raise fields.wrong(f"layer_types[{index}]", layer_type, f"'{FULL}' or '{SLIDING}'")
        num_heads, num_kv_heads, head_dim = sizes[layer_type]
        factor = fields.check_number(f"partial_rotary_factors[{index}]", factors[index])
        rotary_dim = int(head_dim * factor)
        if rotary_dim % 2 or rotary_dim > head_dim:
            raise fields.wrong(
                f"partial_rotary_factors[{index}]",
                factor,
                f"an even part of the {head_dim} dimensions of a head",
            )
        layers.append(
            LayerConfig(
                index=index,
                is_sliding=layer_type == SLIDING,
                num_heads=num_heads,
                num_kv_heads=num_kv_heads,
                head_dim=head_dim,
                rope_theta=fields.check_number(f"rope_theta[{index}]", thetas[index]),
                rotary_dim=rotary_dim,
                rope_scaling=scaling if layer_type in scaled_types else None,
                is_moe=index in moe_layers,
                swiglu_limit=fields.check_number(f"swiglu_limits[{index}]", limits[index] or 0.0),
                swiglu_limit_shared=fields.check_number(
                    f"swiglu_limits_shared[{index}]", limits_shared[index] or 0.0
                ),
            )
        )
    return tuple(layers)
