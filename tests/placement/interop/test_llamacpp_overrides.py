"""`-ot` options place whole layers as the plan does, by llama.cpp's own rules for patterns."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from placement.errors import PlanError, RoutingFileError
from placement.given.stats import RoutingStats
from placement.holders import HolderTable
from placement.interop.llamacpp_overrides import tensor_overrides
from placement.plan import Plan, PlannedTier, like_layers
from tests.placement.shapes import small_shape

SHAPE = small_shape(num_moe_layers=12)
WORKERS = (
    PlannedTier("head", "box", "cuda:1", "vram", 10**9),
    PlannedTier("ram", "box", "cpu", "ram", 10**9),
    PlannedTier("far", "attic", "cpu", "ram", 10**9),
)
BUFFERS = {"far": "RPC0[attic.local:50052]"}


def plan_of(masks: np.ndarray[Any, Any]) -> Plan:
    return Plan(
        SHAPE.name,
        SHAPE.fingerprint,
        like_layers(SHAPE.moe_layers, "q4_0", 216),
        "bfloat16",
        WORKERS,
        HolderTable.from_masks(masks),
        "test",
    )


def whole_layers() -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Layers 1 to 4 on the GPU, 5 to 9 in RAM, 10 to 12 far away."""
    masks = np.zeros((3, 12, 10), dtype=bool)
    masks[0, :4], masks[1, 4:9], masks[2, 9:] = True, True, True
    return masks


def buffer_of(option: str, tensor: str) -> str | None:
    """llama.cpp's rule: parts between commas, name up to the first equals sign, first match decides."""
    for part in option.split(","):
        pattern, _, buffer = part.partition("=")
        if re.search(pattern, tensor):
            return buffer
    return None


def test_every_expert_tensor_goes_where_the_plan_says() -> None:
    overrides = tensor_overrides(plan_of(whole_layers()), buffers=BUFFERS)
    assert overrides.split_layers == ()
    option = overrides.option()
    assert overrides.arguments() == ["--rpc", "attic.local:50052", "-ot", option]
    for layer in SHAPE.moe_layers:
        expected = "CUDA1" if layer <= 4 else "CPU" if layer <= 9 else "RPC0[attic.local:50052]"
        for part in ("gate", "up", "down", "gate_up"):
            assert buffer_of(option, f"blk.{layer}.ffn_{part}_exps.weight") == expected


def test_nothing_else_is_moved() -> None:
    option = tensor_overrides(plan_of(whole_layers()), buffers=BUFFERS).option()
    for tensor in (
        "blk.0.ffn_gate.weight",
        "blk.1.attn_q.weight",
        "blk.1.ffn_gate_inp.weight",
        "blk.1.ffn_up_shexp.weight",
        "blk.11.attn_k.weight",
        "blk.21.ffn_gate_exps.weight",
        "blk.111.ffn_gate_exps.weight",
        "output.weight",
    ):
        assert buffer_of(option, tensor) is None


def test_a_divided_layer_goes_where_most_of_its_choices_are_and_is_named() -> None:
    masks = whole_layers()
    masks[0, 2, 3:], masks[1, 2, 3:] = False, True
    plan = plan_of(masks)
    by_number = tensor_overrides(plan, buffers=BUFFERS)
    assert by_number.split_layers == (3,)
    assert by_number.layers_of_buffer["CPU"] == (3, 5, 6, 7, 8, 9)
    hot = np.tile([[0, 1]], (100, 12, 1))
    stats = RoutingStats.from_trace(SHAPE, hot, "text")
    by_heat = tensor_overrides(plan, stats, BUFFERS)
    assert by_heat.split_layers == (3,)
    assert by_heat.layers_of_buffer["CUDA1"] == (1, 2, 3, 4)


def test_two_workers_of_one_buffer_do_not_divide_a_layer() -> None:
    masks = whole_layers()
    masks[1, 10, :5], masks[2, 10, :5] = True, False
    overrides = tensor_overrides(plan_of(masks), buffers={"far": "CPU"})
    assert overrides.split_layers == ()
    assert overrides.layers_of_buffer["CPU"] == tuple(range(5, 13))
    assert overrides.arguments()[0] == "-ot"


def test_a_worker_without_a_buffer_is_an_error() -> None:
    plan = plan_of(whole_layers())
    with pytest.raises(PlanError, match=r"device 'far' \(cpu on attic\): expected the name"):
        tensor_overrides(plan)
    with pytest.raises(PlanError, match="expected no comma, equals sign or space"):
        tensor_overrides(plan, buffers={"far": "RPC0[a:1],CPU"})


def test_statistics_must_be_of_the_plans_model() -> None:
    other = RoutingStats.from_counts(small_shape(), np.full((3, 10), 4), 20, "text")
    with pytest.raises(RoutingFileError, match="made for 'small'"):
        tensor_overrides(plan_of(whole_layers()), other, BUFFERS)
