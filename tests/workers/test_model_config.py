"""config.json: the published forms, and what is said about a wrong one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from placement.errors import CheckpointError
from placement.model_shape import STEP_3_5_FLASH
from tests.tiny_checkpoint import write_random_checkpoint
from workers.model_config import Step35Config

FULL_HEADS, SLIDING_HEADS = 64, 96


def published() -> dict[str, Any]:
    """Step-3.5-Flash's configuration as its documents give it."""
    sliding = [layer % 4 != 0 for layer in range(45)] + [True] * 3
    return {
        "model_type": "step3p5",
        "hidden_size": 4096,
        "num_hidden_layers": 45,
        "num_nextn_predict_layers": 3,
        "vocab_size": 128896,
        "bos_token_id": 0,
        "eos_token_id": [1, 2, 128007],
        "num_attention_heads": FULL_HEADS,
        "num_attention_groups": 8,
        "head_dim": 128,
        "attention_other_setting": {
            "attention_type": "sliding_attention",
            "num_attention_heads": SLIDING_HEADS,
            "num_attention_groups": 8,
            "head_dim": 128,
        },
        "layer_types": ["sliding_attention" if s else "full_attention" for s in sliding],
        "sliding_window": 512,
        "use_head_wise_attn_gate": True,
        "rope_theta": [10000.0 if s else 5000000.0 for s in sliding],
        "partial_rotary_factors": [1.0 if s else 0.5 for s in sliding],
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 2.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 32.0,
            "original_max_position_embeddings": 131072,
        },
        "yarn_only_types": ["full_attention"],
        "max_position_embeddings": 262144,
        "intermediate_size": 11264,
        "moe_layers_enum": ",".join(str(layer) for layer in range(3, 45)),
        "moe_num_experts": 288,
        "moe_top_k": 8,
        "moe_intermediate_size": 1280,
        "share_expert_dim": 1280,
        "moe_router_activation": "sigmoid",
        "use_moe_router_bias": True,
        "need_fp32_gate": True,
        "norm_expert_weight": True,
        "moe_router_scaling_factor": 3.0,
        "swiglu_limits": [7.0 if layer in (43, 44) else 0.0 for layer in range(48)],
        "swiglu_limits_shared": [16.0 if layer == 44 else None for layer in range(48)],
        "zero_centered": True,
        # What follows stands in the published file too.
        "architectures": ["Step3p5ForCausalLM"],
        "auto_map": {"AutoConfig": "configuration_step3p5.Step3p5Config"},
        "torch_dtype": "bfloat16",
        "max_seq_len": 262144,
        "use_qk_norm": True,
        "use_moe": True,
        "moe_layer_offset": 0,
        "moe_every_n_layer": 1,
        "att_impl_type": "GQA",
        "sink": False,
        "use_rope_layers": [],
        "tie_word_embeddings": False,
    }


def load(directory: Path, document: Any) -> Step35Config:
    (directory / "config.json").write_text(json.dumps(document))
    return Step35Config.load(directory)


def test_the_published_configuration(tmp_path: Path) -> None:
    config = load(tmp_path, published())
    assert config.shape("step-3.5-flash") == STEP_3_5_FLASH
    assert config.rms_norm_eps == 1e-5
    assert config.eos_token_ids == (1, 2, 128007)
    assert config.moe_router_scaling_factor == 3.0
    full, sliding, mtp = config.layers[0], config.layers[1], config.layers[47]
    assert (full.num_heads, full.rotary_dim, full.rope_theta) == (64, 64, 5e6)
    assert full.rope_scaling is not None
    assert full.rope_scaling.original_max_position_embeddings == 131072
    assert (sliding.num_heads, sliding.rotary_dim, sliding.rope_theta) == (96, 128, 1e4)
    assert sliding.rope_scaling is None
    assert mtp.is_sliding
    assert not mtp.is_moe
    assert [layer.index for layer in config.layers if layer.swiglu_limit] == [43, 44]
    assert [layer.swiglu_limit_shared for layer in config.layers[43:46]] == [0.0, 16.0, 0.0]


def test_other_accepted_forms_mean_the_same(tmp_path: Path) -> None:
    expected = load(tmp_path, published())
    document = published()
    document["moe_layers_enum"] = list(range(3, 45))
    document["rope_scaling"]["type"] = document["rope_scaling"].pop("rope_type")
    del document["bos_token_id"]
    nested = {"model_type": "step3p7", "bos_token_id": 0, "text_config": document}
    assert load(tmp_path, nested) == expected


def llama3(document: dict[str, Any]) -> dict[str, Any]:
    return dict(document["rope_scaling"])


def respelled(name: str) -> dict[str, Any]:
    """The published configuration with one thing said otherwise."""
    document = published()
    match name:
        case "flat rope_parameters":
            document["rope_parameters"] = document.pop("rope_scaling")
        case "flat rope_parameters with the bases":
            document["rope_parameters"] = document.pop("rope_scaling") | {
                "rope_theta": document.pop("rope_theta")
            }
        case "both rope keys alike":
            document["rope_parameters"] = llama3(document)
        case "rope_parameters by layer type":
            scaling = document.pop("rope_scaling")
            for key in ("rope_theta", "partial_rotary_factors", "yarn_only_types"):
                del document[key]
            document["rope_parameters"] = {
                "full_attention": scaling | {"rope_theta": 5e6, "partial_rotary_factor": 0.5},
                "sliding_attention": {
                    "rope_type": "default",
                    "rope_theta": 10000.0,
                    "partial_rotary_factor": 1.0,
                },
            }
        case "key/value heads":
            document["num_key_value_heads"] = document.pop("num_attention_groups")
        case "experts":
            document["n_routed_experts"] = document.pop("moe_num_experts")
            document["num_experts_per_tok"] = document.pop("moe_top_k")
            document["share_expert_dims"] = document.pop("share_expert_dim")
        case "mlp_layer_types":
            del document["moe_layers_enum"]
            document["mlp_layer_types"] = ["dense"] * 3 + ["sparse"] * 42 + ["dense"] * 3
        case "sliding heads":
            del document["attention_other_setting"]
            document["num_sliding_attention_heads"] = SLIDING_HEADS
        case "sliding heads by layer":
            del document["attention_other_setting"]
            document["per_layer_config"] = {
                str(layer): {"num_attention_heads": SLIDING_HEADS} for layer in range(45) if layer % 4
            }
        case "true_head_dim":
            document["attention_other_setting"]["true_head_dim"] = 128
        case "MTP layers apart":
            document["mtp_layer_types"] = ["sliding_attention"] * 3
            document["layer_types"] = document["layer_types"][:45]
        case "length":
            del document["max_position_embeddings"]
        case "nulls":
            document |= {"a_key_of_tomorrow": None, "sparse_attention_config": None}
        case "notes":
            document |= {"_comment": "see the paper", "transformers_version": "5.24.0"}
        case _:
            raise AssertionError(name)
    return document


@pytest.mark.parametrize(
    "name",
    [
        "flat rope_parameters",
        "flat rope_parameters with the bases",
        "both rope keys alike",
        "rope_parameters by layer type",
        "key/value heads",
        "experts",
        "mlp_layer_types",
        "sliding heads",
        "sliding heads by layer",
        "true_head_dim",
        "MTP layers apart",
        "length",
        "nulls",
        "notes",
    ],
)
def test_every_spelling_means_the_same(tmp_path: Path, name: str) -> None:
    assert load(tmp_path, respelled(name)) == load(tmp_path, published())


def test_lists_may_be_as_long_as_the_trunk(tmp_path: Path) -> None:
    """MTP layers are sliding in this architecture, and only draft: what they draft is verified."""
    expected = load(tmp_path, published())
    document = published()
    document |= {
        key: value[:45] for key, value in document.items() if isinstance(value, list) and len(value) == 48
    }
    assert load(tmp_path, document) == expected


def test_a_setting_around_the_text_config_counts_where_that_has_none(tmp_path: Path) -> None:
    document = published()
    outer = {"model_type": "step3p7", "rope_scaling": document.pop("rope_scaling"), "image_token_id": 128001}
    nested = outer | {"vision_config": {"width": 1536}, "text_config": document}
    assert load(tmp_path, nested) == load(tmp_path, published())
    document["rope_scaling"] = {"rope_type": "default"}
    with pytest.raises(CheckpointError, match=r"'rope_scaling' is .* but .* in text_config"):
        load(tmp_path, nested)


def test_flags_the_file_leaves_out_are_left_to_the_tensors(tmp_path: Path) -> None:
    document = published()
    del document["use_moe_router_bias"], document["use_head_wise_attn_gate"]
    config = load(tmp_path, document)
    assert config.use_moe_router_bias is None
    assert config.use_head_wise_attn_gate is None
    assert config.shape("step-3.5-flash") == STEP_3_5_FLASH


def test_scalars_stand_for_every_layer(tmp_path: Path) -> None:
    document = published() | {"rope_theta": 10000, "eos_token_id": 5, "partial_rotary_factors": None}
    config = load(tmp_path, document)
    assert {layer.rope_theta for layer in config.layers} == {10000.0}
    assert {layer.rotary_dim for layer in config.layers} == {128}
    assert config.eos_token_ids == (5,)


def test_a_model_without_drafts_needs_no_entries_for_them(tmp_path: Path) -> None:
    document = published() | {"num_nextn_predict_layers": 0}
    document |= {
        key: value[:45] for key, value in document.items() if isinstance(value, list) and len(value) == 48
    }
    assert len(load(tmp_path, document).layers) == 45


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llama"}, "model_type is 'llama', expected 'step3p5' or 'step3p7'"),
        ({"model_type": "step3p7"}, "expected 'step3p5' or 'step3p7' with a text_config"),
        ({"hidden_size": None}, "hidden_size is missing, expected an integer of at least 1"),
        ({"hidden_size": "4096"}, "hidden_size is '4096', expected an integer"),
        ({"moe_top_k": 289}, "moe_top_k is 289, expected at most moe_num_experts, 288"),
        ({"layer_types": ["full_attention"] * 46}, r"expected 45 entries .* or 48 .* found 46"),
        ({"layer_types": ["full_attention"] * 44}, r"expected 45 entries .* found 44"),
        ({"layer_types": None}, "layer_types is missing"),
        ({"layer_types": [["full_attention"]] * 48}, r"layer_types\[0\] is \['full_attention'\]"),
        ({"layer_types": ["linear_attention"] * 48}, r"layer_types\[0\] is 'linear_attention'"),
        ({"moe_layers_enum": "3,45"}, "moe_layers_enum is '3,45', expected layer indices below 45"),
        ({"moe_layers_enum": "3;4"}, "moe_layers_enum is '3;4'"),
        ({"moe_layers_enum": None}, "moe_layers_enum is missing"),
        ({"moe_router_activation": "softmax"}, "moe_router_activation is 'softmax', expected 'sigmoid'"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', expected 'silu'"),
        ({"rope_scaling": {"rope_type": "yarn"}}, r"rope_scaling\.rope_type is 'yarn'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2}}, r"rope_scaling\.low_freq_factor is missing"),
        ({"num_attention_groups": 7}, "num_attention_heads is 64, expected a multiple of the 7 groups"),
        (
            {"partial_rotary_factors": [0.29] * 48},
            r"partial_rotary_factors\[0\] is 0.29, expected an even part",
        ),
        ({"partial_rotary_factors": [2.0] * 48}, r"partial_rotary_factors\[0\] is 2.0"),
        ({"swiglu_limits": [-1.0] * 48}, r"swiglu_limits\[0\] is -1.0"),
        ({"a_key_of_tomorrow": 5}, "'a_key_of_tomorrow' is 5: Potluck does not know this key.* remove it"),
        ({"k" * 5000: "v" * 5000}, "'k{80}'… is 'v{80}'…: Potluck"),
        ({"attention_bias": True}, "attention_bias is True, expected False"),
        ({"attention_bias": 0}, "attention_bias is 0, expected False"),
        ({"use_qk_norm": False}, "use_qk_norm is False, expected True"),
        ({"sink": True}, "sink is True"),
        ({"use_moe": False}, "use_moe is False, expected true"),
        ({"use_rope_layers": [True] * 47 + [False]}, "use_rope_layers is .* expected true for every layer"),
        ({"use_rope_layers": False}, "use_rope_layers is .* expected true for every layer"),
        (
            {"mtp_layer_types": ["full_attention"] * 3},
            "mtp_layer_types is .* what layer_types says of the MTP",
        ),
        ({"eos_token_id": [1, 128896]}, "eos_token_id is 128896, expected a token of the vocabulary"),
        ({"query_pre_attn_scalar": 64}, "query_pre_attn_scalar is 64, expected head_dim, 128"),
        ({"sparse_attention_config": {"x": 1}}, "'sparse_attention_config' is"),
        (
            {"attention_other_setting": {"window": 3}},
            r"'attention_other_setting\.window' is 3: Potluck does not",
        ),
        ({"attention_other_setting": {"attention_type": "full_attention"}}, "attention_type is 'full_att"),
        ({"num_key_value_heads": 4}, "num_key_value_heads is 4, expected what num_attention_groups says, 8"),
        (
            {"num_sliding_attention_heads": 64},
            "num_sliding_attention_heads is 64, expected what attention_ot",
        ),
        (
            {"per_layer_config": {"1": {"num_attention_heads": 64}}},
            r"per_layer_config\.1\.num_attention_heads",
        ),
        ({"per_layer_config": {"1": {"head_dim": 64}}}, r"'per_layer_config\.1\.head_dim' is 64: Potluck"),
        ({"mlp_layer_types": ["sparse"] * 48}, "mlp_layer_types is .* as 'sparse': remove the wrong one"),
        ({"moe_layers_enum": [3.7]}, r"moe_layers_enum is \[3.7\]"),
        ({"moe_layers_enum": [True]}, r"moe_layers_enum is \[True\]"),
        ({"rope_parameters": {"rope_type": "yarn"}}, r"rope_parameters\.rope_type is 'yarn'"),
        ({"rope_parameters": {"rope_type": "default"}}, "rope_parameters is .* the same as rope_scaling"),
        (
            {"rope_parameters": {"rope_theta": 5.0}},
            r"rope_parameters\.rope_theta is .* what rope_theta says of",
        ),
        ({"rope_parameters": {"factor": 2.0}}, r"rope_parameters\.rope_type is missing, expected 'llama3'"),
        ({"rope_parameters": {"beta_fast": 2.0}}, r"'rope_parameters\.beta_fast' is 2.0: Potluck does not"),
        ({"rope_parameters": {"full_attention": {}}}, r"rope_parameters\.full_attention is missing"),
        ({"rope_parameters": 5}, "rope_parameters is 5, expected an object"),
        ({"partial_rotary_factor": 0.25}, "partial_rotary_factor is 0.25, expected what partial_rotary_fact"),
        ({"rope_theta": [0.0] * 48}, r"rope_theta\[0\] is 0.0, expected a number above 0"),
        ({"rope_theta": 10**400}, "rope_theta"),
        ({"yarn_only_types": 5}, "yarn_only_types is 5, expected a list of"),
        ({"yarn_only_types": "full_attention"}, "yarn_only_types is 'full_attention', expected a list"),
        ({"num_hidden_layers": 10**12}, "num_hidden_layers is 1000000000000, expected at most 1024"),
        ({"num_hidden_layers": 3 * 10**7}, "num_hidden_layers is 30000000, expected at most 1024"),
        ({"num_nextn_predict_layers": 10**6}, "num_nextn_predict_layers is 1000000, expected at most 979"),
        ({"moe_num_experts": 10**9}, "moe_num_experts is 1000000000, expected at most 65535"),
        ({"moe_num_experts": 65536}, "moe_num_experts is 65536, expected at most 65535"),
        ({"moe_num_experts": 65535}, "moe_num_experts is 65535, expected at most 262144 experts in all"),
        ({"hidden_size": 10**30}, "hidden_size is 1.* expected at most"),
        ({"sliding_window": 10**12}, "sliding_window is 1000000000000, expected at most"),
        ({"zero_centered": 1}, "zero_centered is 1, expected true or false"),
        ({"head_dim": True}, "head_dim is True"),
    ],
)
def test_a_wrong_field_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        load(tmp_path, published() | change)
    assert str(tmp_path / "config.json") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < len(str(tmp_path)) + 400


ABSURD: tuple[Any, ...] = (
    *(
        None,
        True,
        0,
        -1,
        10**12,
        10**400,
        1.5,
        1e308,
        float("nan"),
        float("inf"),
        "",
        "x",
        "x" * 10_000,
        "a\nb",
    ),
    *("\ud800", [], [None] * 48, [1e308] * 48, ["x"] * 45, [[]] * 48, {}, {"a": 1}, {"rope_type": [1]}),
    *({"rope_type": "llama3", "factor": "x"}, {"sliding_attention": {"rope_theta": [1, {}]}}),
    *({"0": {"num_attention_heads": {}}}, {"num_attention_heads": [5], "attention_type": []}),
)


@pytest.mark.parametrize(
    "name",
    [
        *published(),
        *("rope_parameters", "per_layer_config", "mlp_layer_types", "mtp_layer_types", "mtp_mlp_layer_types"),
        *("num_sliding_attention_heads", "query_pre_attn_scalar", "partial_rotary_factor", "text_config"),
    ],
)
def test_whatever_a_field_holds_it_loads_or_is_one_line(tmp_path: Path, name: str) -> None:
    document = published()
    if name == "rope_parameters":
        for key in ("rope_theta", "partial_rotary_factors", "rope_scaling", "yarn_only_types"):
            del document[key]
    messages = []
    for value in ABSURD:
        try:
            load(tmp_path, document | {name: value}).shape("absurd")
        except CheckpointError as error:
            messages.append(str(error).replace(str(tmp_path), ""))
    assert not [message for message in messages if "\n" in message or len(message) > 420]


def test_scaling_must_have_room_between_its_wavelengths(tmp_path: Path) -> None:
    document = published()
    document["rope_scaling"]["high_freq_factor"] = 1.0
    with pytest.raises(
        CheckpointError, match=r"high_freq_factor is 1.0, expected more than low_freq_factor, 1"
    ):
        load(tmp_path, document)


def test_a_layer_type_is_not_scaled_against_yarn_only_types(tmp_path: Path) -> None:
    document = respelled("rope_parameters by layer type")
    document["rope_parameters"]["sliding_attention"] |= llama3(published())
    assert load(tmp_path, document).layers[1].rope_scaling is not None
    document["yarn_only_types"] = ["full_attention"]
    with pytest.raises(
        CheckpointError, match=r"sliding_attention\.rope_type is 'llama3', expected 'default', or"
    ):
        load(tmp_path, document)


def test_a_pipe_in_place_of_the_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match=r"config\.json: it is a pipe"):
        Step35Config.load(tmp_path)


def test_deep_nesting_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match=r"config\.json: nested more than 64 deep"):
        Step35Config.load(tmp_path)


def test_a_directory_without_a_configuration(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json: No such file"):
        Step35Config.load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not JSON"):
        Step35Config.load(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="expected a JSON object"):
        Step35Config.load(tmp_path)


@pytest.mark.parametrize("model_type", ["step3p5", "step3p7"])
def test_written_checkpoints_load(tmp_path: Path, model_type: Any) -> None:
    config = Step35Config.load(write_random_checkpoint(tmp_path, seed=0, model_type=model_type))
    assert config.moe_layers == (2, 3, 4, 5)
    assert config.num_nextn_predict_layers == 3


def test_reading_a_configuration_loads_neither_torch_nor_ray() -> None:
    code = "import sys, workers.model_config; sys.exit(bool({'torch', 'ray', 'zmq'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
