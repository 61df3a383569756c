"""config.json: the published forms, and what is said about a wrong one."""

from __future__ import annotations

import json
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
        ({"hidden_size": None}, "hidden_size is None, expected an integer of at least 1"),
        ({"hidden_size": "4096"}, "hidden_size is '4096', expected an integer"),
        ({"moe_top_k": 289}, "moe_top_k is 289, expected at most moe_num_experts, 288"),
        ({"layer_types": ["full_attention"] * 45}, r"expected 48 entries .* found 45"),
        ({"layer_types": ["linear_attention"] * 48}, r"layer_types\[0\] is 'linear_attention'"),
        ({"moe_layers_enum": "3,45"}, "moe_layers_enum is '3,45', expected layer indices below 45"),
        ({"moe_layers_enum": "3;4"}, "moe_layers_enum is '3;4'"),
        ({"moe_layers_enum": None}, "moe_layers_enum is None"),
        ({"moe_router_activation": "softmax"}, "moe_router_activation is 'softmax', expected 'sigmoid'"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', expected 'silu'"),
        ({"rope_scaling": {"rope_type": "yarn"}}, r"rope_scaling\.rope_type is 'yarn'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2}}, r"rope_scaling\.low_freq_factor is None"),
        ({"num_attention_groups": 7}, "num_attention_heads is 64, expected a multiple of the 7 groups"),
        (
            {"partial_rotary_factors": [0.29] * 48},
            r"partial_rotary_factors\[0\] is 0.29, expected an even part",
        ),
        ({"partial_rotary_factors": [2.0] * 48}, r"partial_rotary_factors\[0\] is 2.0"),
        ({"swiglu_limits": [-1.0] * 48}, r"swiglu_limits\[0\] is -1.0"),
        ({"zero_centered": 1}, "zero_centered is 1, expected true or false"),
        ({"head_dim": True}, "head_dim is True"),
    ],
)
def test_a_wrong_field_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        load(tmp_path, published() | change)
    assert str(tmp_path / "config.json") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_directory_without_a_configuration(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json does not exist"):
        Step35Config.load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read as JSON"):
        Step35Config.load(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="model_type is None"):
        Step35Config.load(tmp_path)


@pytest.mark.parametrize("model_type", ["step3p5", "step3p7"])
def test_written_checkpoints_load(tmp_path: Path, model_type: Any) -> None:
    config = Step35Config.load(write_random_checkpoint(tmp_path, seed=0, model_type=model_type))
    assert config.moe_layers == (2, 3, 4, 5)
    assert config.num_nextn_predict_layers == 3


def test_reading_a_configuration_loads_neither_torch_nor_ray() -> None:
    code = "import sys, workers.model_config; sys.exit(bool({'torch', 'ray', 'zmq'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
