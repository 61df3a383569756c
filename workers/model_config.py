"""A Step-3.5 model's config.json as one frozen dataclass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from placement.errors import CheckpointError, InputError
from placement.files.json_file import expect_object, read_json
from placement.files.quote import quote
from placement.model_shape import MOST_EXPERTS, MOST_LAYERS, MOST_POSITIONS, AttentionShape, ModelShape
from workers.config import keys
from workers.config.fields import Fields
from workers.config.heads import HeadSizes, read_heads
from workers.config.layer_types import FULL, LAYER_TYPES, SLIDING
from workers.config.moe_layers import read_moe_layers
from workers.config.rope import RopeDivisors, RopeScaling, read_rope

# vLLM and the published implementation use this when the file says nothing.
DEFAULT_RMS_NORM_EPS = 1e-5

# Bounds far above any model there is: a wrong file ends here and not in a machine without memory.
MOST_BYTES = 4_000_000
MOST_ROUTED_EXPERTS = 2**18
MOST_WIDTH = 2**20
MOST_VOCABULARY = 2**24


@dataclass(frozen=True, slots=True)
class LayerConfig:
    """One layer, trunk or MTP.

    Attributes:
        index: absolute, as in tensor names; MTP layers follow the trunk.
        rotary_dim: how many of head_dim dimensions rotate, an even number.
        rope_scaling: llama3 scaling, by its rule or by what it divides; None where it does not apply.
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
    rope_scaling: RopeScaling | RopeDivisors | None
    is_moe: bool
    swiglu_limit: float
    swiglu_limit_shared: float


@dataclass(frozen=True, slots=True)
class Step35Config:
    """The model's sizes and settings, under the published field names.

    Attributes:
        eos_token_ids: every end token, possibly none.
        use_moe_router_bias, use_head_wise_attn_gate: None where the file does not say; the tensors then do.
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
    use_moe_router_bias: bool | None
    sliding_window: int
    max_position_embeddings: int
    use_head_wise_attn_gate: bool | None
    zero_centered: bool
    tie_word_embeddings: bool
    layers: tuple[LayerConfig, ...]

    @classmethod
    def load(cls, model_dir: str | Path) -> Step35Config:
        """Read `model_dir`/config.json: model_type step3p5, or step3p7 and its text_config.

        Raises:
            CheckpointError: no such file, another architecture, a field that is missing or wrong, or a key
                that is not known and may bear on the numbers.
        """
        path = Path(model_dir) / "config.json"
        expected = "the config.json of a Hugging Face model directory"
        document = expect_object(
            read_json(path, CheckpointError, expected, most_bytes=MOST_BYTES), CheckpointError, str(path)
        )
        fields = Fields(str(path), _text_config(str(path), document))
        config = cls.from_fields(fields)
        fields.finish(keys.HARMLESS | {name for name in fields.names() if keys.is_private(name)})
        return config

    @classmethod
    def from_fields(cls, fields: Fields) -> Step35Config:
        """The configuration that `fields` of a config.json, or of one put together from another file, say.

        Raises:
            CheckpointError: a field is missing or wrong, or two of them contradict each other.
        """
        return _parse(fields)

    def check_token_ids(self, token_ids: Sequence[int]) -> None:
        """Raise InputError unless every id is in the vocabulary."""
        for place, token_id in enumerate(token_ids):
            if not 0 <= token_id < self.vocab_size:
                raise InputError(
                    f"token id {quote(token_id)} at place {place} is outside the vocabulary; "
                    f"expected 0 to {self.vocab_size - 1}"
                )

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
                    has_head_gate=self.use_head_wise_attn_gate is not False,
                )
                for layer in self.layers
            ),
            num_mtp_layers=self.num_nextn_predict_layers,
            max_positions=self.max_position_embeddings,
        )


def _text_config(path: str, document: dict[str, Any]) -> dict[str, Any]:
    """The text model's fields: the whole file, or its text_config and what stands around it."""
    model_type, text = document.get("model_type"), document.get("text_config")
    if model_type == "step3p5":
        return document
    if model_type != "step3p7" or not isinstance(text, dict):
        raise CheckpointError(
            f"{path}: model_type is {quote(model_type)}, expected 'step3p5' or 'step3p7' with a text_config: "
            "Potluck runs models of the Step-3.5 architecture"
        )
    inner_type = text.get("model_type")
    if inner_type not in (None, "step3p5"):
        raise CheckpointError(
            f"{path}: text_config.model_type is {quote(inner_type)}, expected 'step3p5': "
            "Potluck runs models of the Step-3.5 architecture"
        )
    # The published code, too, takes a setting from outside where the text_config has none.
    fields = {name: value for name, value in text.items() if value is not None}
    for name, value in document.items():
        if name in keys.OUTER_HARMLESS or keys.is_about_images(name):
            continue
        inner = fields.setdefault(name, value)
        if value not in (None, inner) and name not in keys.HARMLESS | {"bos_token_id", "eos_token_id"}:
            raise CheckpointError(
                f"{path}: {quote(name)} is {quote(value)}, but {quote(inner)} in text_config: "
                "remove the wrong one"
            )
    return fields


def _parse(fields: Fields) -> Step35Config:
    num_trunk = fields.integer("num_hidden_layers", most=MOST_LAYERS)
    num_mtp = fields.integer(
        "num_nextn_predict_layers", "num_mtp_layers", default=0, least=0, most=MOST_LAYERS - num_trunk
    )
    _refuse_other_models(fields)
    moe_layers = read_moe_layers(fields, num_trunk, num_mtp)
    num_experts = fields.integer(
        "moe_num_experts", "n_routed_experts", "num_local_experts", most=MOST_EXPERTS
    )
    top_k = fields.integer("moe_top_k", "num_experts_per_tok")
    if top_k > num_experts:
        most = fields.spelled("moe_num_experts")
        raise fields.wrong("moe_top_k", top_k, f"at most {most}, {num_experts}")
    if num_experts * len(moe_layers) > MOST_ROUTED_EXPERTS:
        raise fields.wrong(
            "moe_num_experts",
            num_experts,
            f"at most {MOST_ROUTED_EXPERTS} experts in all MoE layers together",
        )
    if fields.flag("use_moe") is False and moe_layers:
        raise fields.wrong("use_moe", False, "true, as there are MoE layers")
    layers = _layers(fields, num_trunk, num_mtp, frozenset(moe_layers))
    # Asked for always, so that it counts as known where no layer slides.
    window = fields.get("sliding_window")
    if any(layer.is_sliding for layer in layers):
        window = fields.check_integer("sliding_window", window, 1, MOST_POSITIONS)
    max_seq_len = fields.integer("max_seq_len", default=0, most=MOST_POSITIONS)
    return Step35Config(
        hidden_size=fields.integer("hidden_size", most=MOST_WIDTH),
        num_hidden_layers=num_trunk,
        num_nextn_predict_layers=num_mtp,
        vocab_size=fields.integer("vocab_size", most=MOST_VOCABULARY),
        bos_token_id=None if fields.get("bos_token_id") is None else fields.integer("bos_token_id", least=0),
        eos_token_ids=_eos_token_ids(fields),
        rms_norm_eps=fields.number("rms_norm_eps", DEFAULT_RMS_NORM_EPS),
        intermediate_size=fields.integer("intermediate_size", most=MOST_WIDTH),
        moe_layers=moe_layers,
        moe_num_experts=num_experts,
        moe_top_k=top_k,
        moe_intermediate_size=fields.integer("moe_intermediate_size", most=MOST_WIDTH),
        share_expert_dim=fields.integer("share_expert_dim", "share_expert_dims", most=MOST_WIDTH),
        moe_router_scaling_factor=fields.number("moe_router_scaling_factor", 1.0),
        norm_expert_weight=fields.flag("norm_expert_weight") is not False,
        use_moe_router_bias=fields.flag("use_moe_router_bias"),
        sliding_window=window if any(layer.is_sliding for layer in layers) else 0,
        max_position_embeddings=fields.integer(
            "max_position_embeddings", default=max_seq_len or None, most=MOST_POSITIONS
        ),
        use_head_wise_attn_gate=fields.flag("use_head_wise_attn_gate"),
        zero_centered=fields.flag("zero_centered") is not False,
        tie_word_embeddings=fields.flag("tie_word_embeddings") is True,
        layers=layers,
    )


def _refuse_other_models(fields: Fields) -> None:
    """Switches of related models, with the value that the Step-3.5 architecture has."""
    fields.only("hidden_act", "silu")
    fields.only("moe_router_activation", "sigmoid")
    fields.only("use_qk_norm", True)
    fields.only("att_impl_type", "GQA")
    fields.only("gating", True, "per-head")
    for name in (
        "sink",
        "attention_bias",
        "mlp_bias",
        "qkv_bias",
        "use_bidirectional_attention",
        "is_encoder_decoder",
    ):
        fields.only(name, False)
    fields.only("moe_dynamic_exp_p", 1.0, 1)


def _eos_token_ids(fields: Fields) -> tuple[int, ...]:
    value = fields.get("eos_token_id")
    values = value if isinstance(value, list) else [] if value is None else [value]
    last = fields.integer("vocab_size", most=MOST_VOCABULARY) - 1
    for item in values:
        if fields.check_integer("eos_token_id", item, 0) > last:
            raise fields.wrong("eos_token_id", item, f"a token of the vocabulary, 0 to {last}")
    return tuple(values)


def _layer_types(fields: Fields, num_trunk: int, num_mtp: int) -> list[str]:
    layer_types = fields.per_layer("layer_types", num_trunk, num_mtp)
    if layer_types is None:
        raise fields.wrong("layer_types", None, f"{num_trunk} of {FULL!r} and {SLIDING!r}, one a layer")
    # MTP layers are sliding in this architecture; a list as long as the trunk leaves them out.
    layer_types[num_trunk:] = [SLIDING if kind is None else kind for kind in layer_types[num_trunk:]]
    for index, layer_type in enumerate(layer_types):
        if layer_type not in LAYER_TYPES:
            raise fields.wrong(f"layer_types[{index}]", layer_type, f"{FULL!r} or {SLIDING!r}")
    return layer_types


def _layers(
    fields: Fields, num_trunk: int, num_mtp: int, moe_layers: frozenset[int]
) -> tuple[LayerConfig, ...]:
    layer_types = _layer_types(fields, num_trunk, num_mtp)
    num_layers = len(layer_types)
    heads = read_heads(fields, layer_types, num_trunk)
    ropes = read_rope(fields, layer_types, num_trunk)
    limits = fields.per_layer("swiglu_limits", num_trunk, num_mtp) or [None] * num_layers
    limits_shared = fields.per_layer("swiglu_limits_shared", num_trunk, num_mtp) or [None] * num_layers
    _check_attention(fields, heads, num_trunk, num_mtp)

    layers = []
    for index, layer_type in enumerate(layer_types):
        sizes, rope = heads[layer_type], ropes[index]
        rotary_dim = int(sizes.head_dim * min(rope.partial_rotary_factor, 2.0))
        if rotary_dim % 2 or rotary_dim > sizes.head_dim:
            raise fields.wrong(
                f"partial_rotary_factors[{index}]",
                rope.partial_rotary_factor,
                f"an even part of the {sizes.head_dim} dimensions of a head",
            )
        layers.append(
            LayerConfig(
                index=index,
                is_sliding=layer_type == SLIDING,
                num_heads=sizes.num_heads,
                num_kv_heads=sizes.num_kv_heads,
                head_dim=sizes.head_dim,
                rope_theta=rope.theta,
                rotary_dim=rotary_dim,
                rope_scaling=rope.scaling,
                is_moe=index in moe_layers,
                swiglu_limit=_limit(fields, f"swiglu_limits[{index}]", limits[index]),
                swiglu_limit_shared=_limit(fields, f"swiglu_limits_shared[{index}]", limits_shared[index]),
            )
        )
    return tuple(layers)


def _check_attention(fields: Fields, heads: dict[str, HeadSizes], num_trunk: int, num_mtp: int) -> None:
    """Settings of attention that this architecture derives from others."""
    scale = fields.get("query_pre_attn_scalar")
    if scale is not None and any(sizes.head_dim != scale for sizes in heads.values()):
        raise fields.wrong("query_pre_attn_scalar", scale, f"head_dim, {heads[FULL].head_dim}")
    fields.only("mtp_base_layer_idx", num_trunk)
    rotates = None
    if fields.get("use_rope_layers") != []:
        rotates = fields.per_layer("use_rope_layers", num_trunk, num_mtp)
    if rotates is not None and not all(entry is True or entry is None for entry in rotates):
        raise fields.wrong("use_rope_layers", rotates, "true for every layer: Potluck rotates in all of them")


def _limit(fields: Fields, name: str, value: Any) -> float:
    """A clamp; null and 0 mean none."""
    return 0.0 if value is None else fields.check_number(name, value)
