"""Plans hold every expert within every budget, whatever the policy, boxes and statistics."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from placement.answers.planner import make_plan
from placement.errors import InputError, PlanDoesNotFit, RoutingFileError
from placement.given.cluster_file import load_cluster
from placement.given.cluster_spec import ClusterSpec, DeviceSpec, LinkSpec, NodeSpec
from placement.given.kernel_rates import KernelRates
from placement.given.problem import PlanningDevice, planning_devices
from placement.given.stats import RoutingStats
from placement.model_shape import STEP_3_5_FLASH, ModelShape
from placement.plan import PlannedTier
from placement.policies.registry import BASELINES, POLICIES
from placement.units import size
from tests.examples import examples
from tests.placement.boxes import device as sized_device
from tests.placement.shapes import small_shape

SHAPE = small_shape()
EXPERT_BYTES = SHAPE.expert_bytes(32)


def device(name: str, num_experts: int, **rates: Any) -> PlanningDevice:
    return sized_device(name, num_experts, EXPERT_BYTES, **rates)


def random_stats(shape: ModelShape, seed: int, num_tokens: int = 200) -> RoutingStats:
    generator = np.random.default_rng(seed)
    popularity = 1.5 * generator.standard_normal((shape.num_moe_layers, shape.num_experts))
    scores = popularity + generator.gumbel(size=(num_tokens, *popularity.shape))
    trace = np.argpartition(-scores, shape.top_k, axis=2)[:, :, : shape.top_k]
    return RoutingStats.from_trace(shape, trace, "synthetic")


@given(
    policy=st.sampled_from(sorted(POLICIES)),
    capacities=st.lists(st.integers(0, 30), min_size=1, max_size=6),
    extra=st.integers(0, 10),
    seed=st.integers(0, 1000),
)
@examples(30)
def test_every_expert_is_placed_and_no_device_is_over_budget(
    policy: str, capacities: list[int], extra: int, seed: int
) -> None:
    capacities.append(max(SHAPE.num_routed_experts - sum(capacities), 0) + extra)
    devices = [device(f"d{i}", c, home=i == 0, gbytes_per_s=10 + i) for i, c in enumerate(capacities)]
    # A disk, without which `one-box` would have to refuse.
    devices.append(device("disk", SHAPE.num_routed_experts, tier="disk", home=True, gbytes_per_s=1))
    stats = random_stats(SHAPE, seed)
    plan = make_plan(SHAPE, devices, stats, policy, dtype="float32", expert_bytes=EXPERT_BYTES)
    assert (plan.holder_table.table[:, :, 0] >= 0).all()
    assert (plan.experts_per_tier() <= np.array([*capacities, SHAPE.num_routed_experts])).all()
    again = make_plan(SHAPE, devices, stats, policy, dtype="float32", expert_bytes=EXPERT_BYTES)
    assert again == plan


def test_the_hottest_experts_go_to_the_fastest_memory() -> None:
    stats = random_stats(SHAPE, 0)
    devices = [
        device("disk", 30, tier="disk", home=True, gbytes_per_s=5),
        device("fast-box", 8, gbytes_per_s=900),
        device("head", 4, tier="vram", home=True, gbytes_per_s=900),
        device("slow-box", 8, gbytes_per_s=20),
        device("ram", 6, home=True, gbytes_per_s=60),
    ]
    plan = make_plan(SHAPE, devices, stats, "hottest-first", dtype="float32", expert_bytes=EXPERT_BYTES)
    counts = {worker.name: stats.counts[plan.holder_table.mask(i)] for i, worker in enumerate(plan.tiers)}
    order = ["head", "ram", "fast-box", "slow-box", "disk"]
    assert [len(counts[name]) for name in order] == [4, 6, 8, 8, 4]
    for hotter, colder in itertools.pairwise(order):
        assert counts[hotter].min() >= counts[colder].max()


def test_uniform_spreads_every_layer_in_proportion() -> None:
    devices = [device("a", 60), device("b", 30)]
    plan = make_plan(SHAPE, devices, policy="uniform", dtype="float32", expert_bytes=EXPERT_BYTES)
    in_layers = plan.holder_table.mask(0).sum(axis=1)
    assert plan.experts_per_tier().tolist() == [20, 10]
    assert ((in_layers >= 6) & (in_layers <= 7)).all()


@pytest.mark.parametrize("policy", ["uniform", "random"])
def test_disks_share_evenly_only_where_memory_does_not_hold_all(policy: str) -> None:
    """A probe finds a disk a hundred times as large as the memory on every box."""

    def experts(memory: int) -> list[int]:
        devices = [device("a", memory), device("b", memory), device("ssd", 3000, tier="disk")]
        plan = make_plan(SHAPE, devices, policy=policy, dtype="float32", expert_bytes=EXPERT_BYTES)
        return plan.experts_per_tier().tolist()

    assert experts(15) == [15, 15, 0]
    assert experts(14)[2] > 14


def test_experts_that_do_not_fit_are_refused_with_the_missing_bytes_and_a_way_out() -> None:
    devices = [device("a", 10), device("b", 10)]
    with pytest.raises(
        PlanDoesNotFit, match=f"{size(10 * EXPERT_BYTES)} are missing; .* --quant bfloat16 fits"
    ):
        make_plan(SHAPE, devices, policy="uniform", dtype="float32", expert_bytes=EXPERT_BYTES)
    with pytest.raises(
        PlanDoesNotFit, match=r"do not fit the device: .* --quant q3 fits, but changes the text"
    ):
        make_plan(
            SHAPE,
            [sized_device("a", 30, SHAPE.expert_bytes(3.5))],
            policy="uniform",
            dtype="q4",
            expert_bytes=SHAPE.expert_bytes(4.5),
        )
    with pytest.raises(PlanDoesNotFit, match="since no --quant fits"):
        make_plan(
            SHAPE, [device("a", 1)], policy="uniform", dtype="q2", expert_bytes=SHAPE.expert_bytes(2.625)
        )


def test_a_disk_is_named_as_a_way_out_where_no_box_has_one(tmp_path: Path) -> None:
    pasted = "{use: nvme-gen4, memory_bytes: 1TB}"
    devices = [device("a", 10), device("b", 10)]
    with pytest.raises(PlanDoesNotFit, match=f"hardware: .*{pasted}"):
        make_plan(SHAPE, devices, policy="uniform", dtype="float32", expert_bytes=EXPERT_BYTES)
    devices[1] = replace(devices[1], tier=replace(devices[1].tier, kind="disk"))
    with pytest.raises(PlanDoesNotFit) as refused:
        make_plan(SHAPE, devices, policy="uniform", dtype="float32", expert_bytes=EXPERT_BYTES)
    assert "disk" not in str(refused.value)
    path = tmp_path / "box.yaml"
    path.write_text(f"head: a\nnodes: [{{name: a, hardware: [rtx-4090, {pasted}]}}]")
    assert load_cluster(path).head_node.devices[1].kind == "disk"


def test_statistics_of_another_model_are_refused() -> None:
    with pytest.raises(RoutingFileError, match="made for 'small'"):
        make_plan(
            small_shape(num_experts=12, name="big"),
            [device("a", 1000)],
            random_stats(SHAPE, 0),
            dtype="float32",
            expert_bytes=EXPERT_BYTES,
        )


def test_hottest_first_without_statistics_is_refused() -> None:
    with pytest.raises(InputError, match="needs routing statistics"):
        make_plan(
            SHAPE, [device("a", 1000)], policy="hottest-first", dtype="float32", expert_bytes=EXPERT_BYTES
        )


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(InputError, match="policy 'best': expected one-box, uniform"):
        make_plan(SHAPE, [device("a", 99)], policy="best", dtype="float32", expert_bytes=EXPERT_BYTES)


def test_workers_are_named_after_node_and_device_and_the_head_process_is_first() -> None:
    gpu = DeviceSpec("gpu", "vram", "cuda:0", 100, 40, 9e11, 1e13)
    ram = DeviceSpec("ram", "ram", "cpu", 200, 0, 5e10, 5e11)
    cluster = ClusterSpec(
        "study",
        (
            NodeSpec("attic", None, (ram,), LinkSpec(3e-4, 3e8)),
            NodeSpec("study", None, (gpu, ram), LinkSpec(5e-5, 1e10)),
        ),
    )
    attic, head, study_ram = planning_devices(cluster)
    assert [d.tier.name for d in (attic, head, study_ram)] == ["attic-ram", "head", "study-ram"]
    assert (attic.is_home, attic.round_trip_s, attic.link_bytes_per_s) == (False, 3e-4, 3e8)
    assert (head.is_home, head.round_trip_s, head.link_bytes_per_s) == (True, 0.0, math.inf)
    assert (study_ram.is_home, study_ram.round_trip_s, study_ram.link_bytes_per_s) == (True, 5e-5, 1e10)
    assert head.tier == PlannedTier("head", "study", "cuda:0", "vram", 60)


@pytest.mark.parametrize("policy", sorted(BASELINES))
def test_baselines_place_the_published_shape_on_128_devices(policy: str) -> None:
    size = STEP_3_5_FLASH.expert_bytes(4.5)
    devices = [sized_device(f"d{i}", 50 + i, size, home=i == 0) for i in range(128)]
    devices.append(sized_device("disk", STEP_3_5_FLASH.num_routed_experts, size, home=True, tier="disk"))
    stats = random_stats(STEP_3_5_FLASH, 0, num_tokens=50)
    plan = make_plan(STEP_3_5_FLASH, devices, stats, policy, dtype="q4", expert_bytes=size)
    held = plan.experts_per_tier()
    assert held.sum() >= STEP_3_5_FLASH.num_routed_experts
    assert (held <= [d.capacity(size) for d in devices]).all()


def test_one_box_that_is_too_small_says_by_how_many_bytes() -> None:
    with pytest.raises(PlanDoesNotFit, match=f"one box: {size(25 * EXPERT_BYTES)} are missing"):
        make_plan(
            SHAPE,
            [device("head", 5), device("a", 99)],
            policy="one-box",
            dtype="f",
            expert_bytes=EXPERT_BYTES,
        )


def test_a_plan_prices_experts_by_their_forms_kernels() -> None:
    """The search and the costs in the plan take the rate of `kernels`, not the device's one rate."""
    slow = KernelRates("q4_k", (1,), (1e9,))
    home = device("head", 400)
    plans = [
        make_plan(SHAPE, [replace(home, kernels=kernels)], dtype="q4", expert_bytes=EXPERT_BYTES)
        for kernels in ((), (slow,))
    ]
    expert_s = 2 * SHAPE.expert_parameters / 1e9
    assert plans[1].tiers[0].expert_s == pytest.approx(expert_s)
    assert plans[0].tiers[0].expert_s < expert_s / 10
