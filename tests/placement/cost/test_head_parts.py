"""The head's parts: together they are the head that plans count."""

from __future__ import annotations

from dataclasses import replace

import pytest

from placement.cost.head import head_seconds, shared_expert_s
from placement.cost.head_parts import head_parts
from placement.given.cluster_spec import Overheads
from placement.given.head_memory import head_memory_bytes
from placement.given.problem import PlanningProblem
from placement.head_split import split_head
from placement.kv_size import PASS_ROWS, WaitingSize
from placement.model_shape import STEP_3_5_FLASH as SHAPE
from placement.workload import HeadForm, HeadForms, Workload
from tests.placement.boxes import device

GPU = replace(
    device("head", 0, 1, tier="vram", gbytes_per_s=400, gflops=20_000),
    overheads=Overheads(layer_s=2e-5, moe_layer_s=1e-5, row_s=1e-6, pass_s=3e-4, draft_s=1e-4),
)
CPU = device("head", 0, 1, gbytes_per_s=40, gflops=700)
WORKLOAD = Workload(num_sequences=2, drafts=3, accepted_drafts=1.2, context=4096, head_bits_per_weight=4.5)


@pytest.mark.parametrize("drafts", [0, 3])
def test_their_bytes_are_the_heads_but_for_embedding_activations_and_rows_that_wait(drafts: int) -> None:
    workload = replace(WORKLOAD, drafts=drafts)
    parts = head_parts(SHAPE, workload, GPU, CPU)
    whole = head_memory_bytes(SHAPE, workload)
    waiting = WaitingSize.of(SHAPE.attention[SHAPE.num_hidden_layers :][:drafts], SHAPE.hidden_size)
    elsewhere = SHAPE.embedding_parameters * 4.5 / 8 + SHAPE.activation_bytes(PASS_ROWS)
    elsewhere += 2 * waiting.num_bytes(4096)
    assert parts.num_bytes == pytest.approx(whole - elsewhere, abs=len(parts.all) * 4)


@pytest.mark.parametrize("drafts", [0, 2])
def test_their_seconds_are_a_steps_but_for_the_pass_and_shared_experts(drafts: int) -> None:
    workload = replace(WORKLOAD, drafts=drafts)
    parts = head_parts(SHAPE, workload, GPU, CPU)
    for head, seconds in (
        (GPU, sum(part.gpu_s for part in parts.all)),
        (CPU, sum(part.cpu_s for part in parts.all)),
    ):
        of_step = head_seconds(PlanningProblem(SHAPE, (head,), 1, workload=workload))
        shared_s = SHAPE.num_moe_layers * shared_expert_s(head, SHAPE, workload)
        assert seconds == pytest.approx(of_step.total_s - of_step.pass_overhead_s + shared_s)


def test_forms_count_part_by_part() -> None:
    forms = HeadForms(*map(HeadForm.of, ("q8", "float32", "q4_k", "q6_k")))
    parts = head_parts(SHAPE, replace(WORKLOAD, head_forms=forms), GPU, CPU)
    assert parts.lm_head.weight_bytes == pytest.approx(SHAPE.lm_head_parameters * 6.5625 / 8, rel=1e-3)
    router_bytes = SHAPE.router_parameters * 4
    dense, moe = parts.layers[0], parts.layers[4]
    smaller = (SHAPE.dense_ffn_parameters - SHAPE.shared_expert_parameters) * 4.5 / 8
    assert dense.weight_bytes - moe.weight_bytes == pytest.approx(smaller - router_bytes, abs=8)


def test_a_small_gpu_keeps_the_layers_and_the_cpu_what_takes_most_room() -> None:
    """Step-3.5-Flash with 3 drafts in 4.5 bits: what an 8 GB card with a margin has room for."""
    parts = head_parts(SHAPE, replace(WORKLOAD, num_sequences=1), GPU, CPU)
    whole = split_head(parts, 8_000_000_000, 5e-5)
    small = split_head(parts, 3_000_000_000, 5e-5)
    assert whole.is_all_in_vram
    assert small.num_cpu_mtp or small.is_lm_head_on_cpu
    assert len(small.cpu_layers) < SHAPE.num_hidden_layers / 2
    assert whole.seconds < small.seconds < sum(part.cpu_s for part in parts.all)
