"""The built-in shape gives the published counts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from placement.errors import InputError
from placement.model_shape import STEP_3_5_FLASH, published_shape


def test_step_3_5_flash_has_the_published_counts() -> None:
    shape = STEP_3_5_FLASH
    assert shape.num_hidden_layers == 45
    assert shape.num_moe_layers == 42
    assert shape.num_dense_layers == 3
    assert shape.expert_parameters == 15_728_640
    assert shape.num_routed_experts == 12_096
    assert round(shape.num_routed_experts * shape.expert_parameters / 1e9, 1) == 190.3
    full, sliding = shape.attention[0], shape.attention[1]
    assert [a.is_sliding for a in shape.attention[:45]].count(False) == 12
    assert round(full.parameters(shape.hidden_size) / 1e6, 1) == 75.8
    assert round(sliding.parameters(shape.hidden_size) / 1e6, 1) == 109.4
    assert round(shape.attention_parameters / 1e9, 2) == 4.52
    assert round(shape.num_dense_layers * shape.dense_ffn_parameters / 1e9, 2) == 0.42
    assert round(shape.num_moe_layers * shape.shared_expert_parameters / 1e9, 2) == 0.66
    assert round(shape.num_moe_layers * shape.router_parameters / 1e9, 2) == 0.05
    assert round(shape.lm_head_parameters / 1e9, 2) == 0.53
    assert round(shape.mtp_layer_parameters(0) / 1e9, 2) == 0.81
    assert round(shape.head_read_parameters / 1e9, 1) == 6.2


def test_step_3_5_flash_has_the_published_sizes_in_bytes() -> None:
    shape = STEP_3_5_FLASH
    assert round(shape.expert_bytes(16) / 1e6, 1) == 31.5
    assert round(shape.expert_bytes(4.5) / 1e6, 2) == 8.85
    assert round(shape.num_routed_experts * shape.expert_bytes(4.5) / 1e9) == 107


def test_fingerprint_follows_routing_and_expert_sizes_but_not_the_name() -> None:
    shape = STEP_3_5_FLASH
    assert replace(shape, name="other").fingerprint == shape.fingerprint
    assert replace(shape, vocab_size=1).fingerprint == shape.fingerprint
    for change in (
        {"hidden_size": 2048},
        {"num_experts": 287},
        {"top_k": 7},
        {"moe_intermediate_size": 640},
        {"moe_layers": shape.moe_layers[1:]},
    ):
        assert replace(shape, **change).fingerprint != shape.fingerprint


def test_published_shapes_are_found_by_name() -> None:
    assert published_shape("Step-3.5-Flash") is STEP_3_5_FLASH
    with pytest.raises(InputError, match=r"'gpt-9'.*expected step-3.5-flash"):
        published_shape("gpt-9")
