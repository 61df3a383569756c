"""A head in VRAM with experts in VRAM, in RAM and on another box, all at once: the layer's time by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from placement.cost.head import shared_expert_s
from placement.given.cluster_spec import ClusterSpec, DeviceSpec, LinkSpec, NodeSpec
from placement.given.problem import PlanningProblem, planning_devices
from placement.given.stats import RoutingStats
from placement.holders import HolderTable
from placement.message_size import message_size
from placement.policies.registry import POLICIES
from placement.replay.evaluate import evaluate
from placement.replay.queueing.scenario import Stream
from placement.replay.queueing.simulation import simulate_queueing
from placement.replay.simulate import simulate_alone
from placement.workload import Workload
from tests.examples import examples
from tests.placement.runs import random_plan, random_trace, system_of
from tests.placement.shapes import small_shape

SHAPE = small_shape(num_moe_layers=3, num_experts=12, top_k=4)
SIZE = SHAPE.expert_bytes(4.5)
GPU = DeviceSpec("gpu", "vram", "cuda:0", 14 * SIZE, 0, 9e8, 6e11)
RAM = DeviceSpec("ram", "ram", "cpu", 24 * SIZE, 0, 6e7, 9e9)
ATTIC = NodeSpec(
    "attic",
    None,
    (DeviceSpec("ram", "ram", "cpu", 12 * SIZE, 0, 4e7, 5e9),),
    LinkSpec(round_trip_s=3e-5, bandwidth_bytes_per_s=3e8),
)


def problem_of(head: DeviceSpec, *, drafts: int = 0) -> PlanningProblem:
    cluster = ClusterSpec("study", (NodeSpec("study", None, (head, RAM), None), ATTIC))
    workload = Workload(drafts=drafts)
    return PlanningProblem(SHAPE, planning_devices(cluster), SIZE, workload=workload, expert_form="q4_k")


@given(
    seed=st.integers(0, 1000),
    drafts=st.integers(0, 2),
    latency_s=st.sampled_from([0.0, 1e-5, 5e-4]),
    link=st.sampled_from([None, 2e7, 25e9]),
)
@examples(40)
def test_a_layer_is_over_when_vram_ram_and_the_other_box_are(
    seed: int, drafts: int, latency_s: float, link: float | None
) -> None:
    """RAM is asked over the host link: a fixed time, and for each row the row down and its sums up.

    What goes to the other box takes that fixed time too.
    """
    head = replace(GPU, host_link_round_trip_s=latency_s, host_link_bytes_per_s=link)
    problem = problem_of(head, drafts=drafts)
    generator = np.random.default_rng(seed)
    table = generator.permutation(np.repeat([0, 1, 2], [12, 14, 10])).reshape(3, 12)
    tokens = 1 + drafts
    trace = np.argsort(generator.random((6 * tokens, 3, 12)), axis=2)[:, :, :4]
    pair_flops = 2 * SHAPE.expert_parameters
    message = message_size(SHAPE, problem.wires)
    row_bytes = message.request_bytes_per_row + message.reply_bytes_per_row
    seconds = []
    for start in range(0, len(trace), tokens):
        step_s = 0.0
        for layer in range(3):
            ids = trace[start : start + tokens, layer]
            there = table[layer][ids]
            work_s = [
                max(
                    len(set(ids[there == number].tolist())) * SIZE / device.bandwidth_bytes_per_s,
                    int((there == number).sum()) * pair_flops / device.ffn_flops_per_s,
                )
                for number, device in enumerate(problem.devices)
            ]
            ram_rows, attic_rows = ((there == device).any(axis=1).sum() for device in (1, 2))
            vram_s = shared_expert_s(problem.devices[0], SHAPE, problem.workload) + work_s[0]
            ram_s = work_s[1] + (latency_s if ram_rows else 0.0)
            ram_s += ram_rows * row_bytes / link if link else 0.0
            attic_s = work_s[2] + (3e-5 + latency_s if attic_rows else 0.0) + attic_rows * row_bytes / 3e8
            step_s += max(vram_s, ram_s, attic_s)
        seconds.append(step_s)
    found = evaluate(problem, HolderTable.from_single(table.astype(np.int16)), trace)
    assert found.moe_seconds == pytest.approx(seconds)


def test_a_head_in_ram_pays_no_host_link() -> None:
    """Whatever its GPU beside it states: the devices are the same to the last bit."""
    gpu = replace(GPU, name="card")
    plain, stated = (
        planning_devices(ClusterSpec("study", (NodeSpec("study", None, (RAM, device), None), ATTIC)))
        for device in (gpu, replace(gpu, host_link_bytes_per_s=25e9))
    )
    assert [replace(device, host_link_bytes_per_s=None) for device in stated] == list(plain)
    assert [device.round_trip_s for device in plain] == [0.0, 0.0, 3e-5]


@given(seed=st.integers(0, 1000), drafts=st.integers(0, 2))
@examples(20)
def test_one_stream_of_the_queueing_simulation_takes_the_same_time(seed: int, drafts: int) -> None:
    """Rows wait for nobody on the host link, and are no remote layers."""
    head = replace(GPU, host_link_round_trip_s=1e-5, host_link_bytes_per_s=2e7)
    devices = planning_devices(ClusterSpec("study", (NodeSpec("study", None, (head, RAM), None), ATTIC)))
    roomy = [replace(d, tier=replace(d.tier, budget_bytes=100 * SHAPE.expert_bytes(16))) for d in devices]
    system = system_of(random_plan(seed, roomy, shape=SHAPE), roomy, Workload(drafts=drafts), SHAPE)
    trace = random_trace(seed, 60, SHAPE)
    alone, queued = simulate_alone(system, [trace]), simulate_queueing(system, [Stream([trace])])
    assert queued.duration_s == pytest.approx(alone.duration_s, rel=1e-9)
    assert queued.bytes_by_link == alone.bytes_by_link
    assert queued.bytes_by_link["link study out"] > 0
    assert queued.remote_layers_per_token == alone.remote_layers_per_token
    without = system_of(
        random_plan(seed, roomy, shape=SHAPE),
        [replace(d, round_trip_s=0.0, link_bytes_per_s=math.inf) if d.is_home else d for d in roomy],
        Workload(drafts=drafts),
        SHAPE,
    )
    assert simulate_alone(without, [trace]).remote_layers_per_token == alone.remote_layers_per_token
    assert simulate_alone(without, [trace]).duration_s <= alone.duration_s * (1 + 1e-12)


@pytest.mark.parametrize("name", ["hottest-per-layer", "least-time"])
def test_a_layer_with_all_its_experts_in_vram_pays_no_host_link(name: str) -> None:
    """Asking RAM takes a second, which no step shows."""
    trace = random_trace(5, 400, SHAPE)
    problem = replace(
        problem_of(replace(GPU, memory_bytes=36 * SIZE, host_link_round_trip_s=1.0)),
        stats=RoutingStats.from_trace(SHAPE, trace, "test"),
    )
    found = evaluate(problem, POLICIES[name](problem), trace)
    assert found.moe_seconds.max() < 1.0
