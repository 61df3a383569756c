"""Dumps as SGLang's recorder saves them, and locations as SGLang accepts them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from placement.errors import PlanError, RoutingFileError
from placement.given.stats import RoutingStats, count_experts
from placement.holders import HolderTable
from placement.interop.sglang_dump import read_sglang_dump
from placement.interop.sglang_location import expert_location, save_logical_count
from placement.plan import Plan, PlannedTier, like_layers
from tests.placement.shapes import small_shape

SHAPE = small_shape()
NUM_LAYERS = SHAPE.num_hidden_layers
MOE = list(SHAPE.moe_layers)
# Twelve slots on two ranks: ten experts, copies of 3 and 0.
SLOTS = torch.tensor([[0, 1, 2, 3, 4, 3, 5, 6, 7, 8, 9, 0]] * NUM_LAYERS)


def random_trace(num_tokens: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.int64]]:
    scores = np.random.default_rng(seed).random((num_tokens, SHAPE.num_moe_layers, SHAPE.num_experts))
    return np.argsort(scores, axis=2)[:, :, : SHAPE.top_k]


def save_stat_dump(path: Path, traces: list[np.ndarray[Any, Any]], buffer_size: int = 6) -> None:
    """What mode `stat` saves: one row a pass in a buffer that is zero behind, dense layers zero."""
    counts = torch.zeros((buffer_size, NUM_LAYERS, SHAPE.num_experts), dtype=torch.int32)
    for index, trace in enumerate(traces):
        counts[index, MOE] = torch.from_numpy(count_experts(trace, SHAPE.num_experts).astype(np.int32))
    torch.save({"rank": 0, "logical_count": counts, "average_utilization_rate_over_window": None}, path)


def slots_of(trace: np.ndarray[Any, Any]) -> torch.Tensor:
    """[layers, tokens, 2] slots that serve `trace`, alternating between the copies of an expert."""
    copies = [[i for i, e in enumerate(SLOTS[0].tolist()) if e == expert] for expert in range(10)]
    slots = torch.full((NUM_LAYERS, len(trace), 2), 0, dtype=torch.int32)
    for token, layers in enumerate(trace):
        for layer, experts in zip(MOE, layers, strict=True):
            chosen = [copies[e][token % len(copies[e])] for e in experts]
            slots[layer, token] = torch.tensor(chosen, dtype=torch.int32)
    return slots


def per_token_record(trace: np.ndarray[Any, Any], forward_pass_id: int) -> dict[str, Any]:
    """What mode `per_token` appends for a pass: eight columns, -1 behind the model's own."""
    ids = torch.full((NUM_LAYERS, len(trace), 8), -1, dtype=torch.int32)
    ids[:, :, :2] = slots_of(trace)
    ids[0] = -1
    return {
        "forward_pass_id": forward_pass_id,
        "rank": 0,
        "gatherer_key": "primary",
        "input_ids": list(range(len(trace))),
        "positions": list(range(len(trace))),
        "extend_seq_lens": None,
        "forward_mode": 2,
        "topk_ids_of_layer": ids,
        "misc_objects": [],
        "global_physical_count": torch.zeros((NUM_LAYERS, 12), dtype=torch.int32),
    }


def save_records(path: Path, records: list[dict[str, Any]]) -> None:
    torch.save({"records": records, "last_physical_to_logical_map": SLOTS}, path)


def test_counts_of_all_passes_add_up(tmp_path: Path) -> None:
    traces = [random_trace(n, seed=n) for n in (5, 1, 9)]
    save_stat_dump(tmp_path / "expert_distribution_recorder_1.5.pt", traces)
    stats = read_sglang_dump(tmp_path / "expert_distribution_recorder_1.5.pt", SHAPE)
    expected = RoutingStats.from_trace(SHAPE, np.concatenate(traces), "text")
    assert np.array_equal(stats.counts, expected.counts)
    assert stats.num_tokens == 15
    assert stats.source == "SGLang, expert_distribution_recorder_1.5.pt"


def test_the_form_before_passes_were_kept_apart_is_read(tmp_path: Path) -> None:
    counts = torch.zeros((NUM_LAYERS, 10), dtype=torch.int64)
    counts[MOE] = 4
    torch.save({"logical_count": counts}, tmp_path / "d.pt")
    assert read_sglang_dump(tmp_path / "d.pt", SHAPE).num_tokens == 20


def test_tokens_become_a_trace_of_logical_experts(tmp_path: Path) -> None:
    traces = [random_trace(n, seed=n) for n in (7, 1, 1)]
    save_records(tmp_path / "d.pt", [per_token_record(trace, i) for i, trace in enumerate(traces)])
    stats = read_sglang_dump(tmp_path / "d.pt", SHAPE)
    assert stats.trace is not None
    assert np.array_equal(stats.trace, np.concatenate(traces))


def test_padded_tokens_are_left_out_and_said(tmp_path: Path) -> None:
    record = per_token_record(random_trace(5), 0)
    record["topk_ids_of_layer"][2, 3] = -1
    save_records(tmp_path / "d.pt", [record])
    stats = read_sglang_dump(tmp_path / "d.pt", SHAPE)
    assert stats.num_tokens == 4
    assert stats.source.endswith(", without 1 tokens that were not recorded")


def test_passes_without_tokens_become_counts(tmp_path: Path) -> None:
    traces = [random_trace(n, seed=n) for n in (4, 6)]
    records = []
    for index, trace in enumerate(traces):
        slots = slots_of(trace)
        count = torch.stack([torch.bincount(row.ravel(), minlength=12) for row in slots]).to(torch.int32)
        records.append(
            {
                "forward_pass_id": index,
                "rank": 0,
                "gatherer_key": "primary",
                "global_physical_count": count,
            }
        )
    save_records(tmp_path / "d.pt", records)
    stats = read_sglang_dump(tmp_path / "d.pt", SHAPE)
    assert np.array_equal(stats.counts, count_experts(np.concatenate(traces), 10))


def test_a_folder_holds_one_file_a_rank(tmp_path: Path) -> None:
    for rank in range(2):
        record = per_token_record(random_trace(3, seed=rank), 0)
        save_records(tmp_path / f"expert_distribution_recorder_1.5_{rank}.pt", [record])
    stats = read_sglang_dump(tmp_path, SHAPE)
    assert stats.trace is not None
    assert np.array_equal(stats.trace, np.concatenate([random_trace(3, seed=rank) for rank in range(2)]))
    (tmp_path / "empty").mkdir()
    with pytest.raises(RoutingFileError, match=r"expected \.pt files"):
        read_sglang_dump(tmp_path / "empty", SHAPE)


def test_approximate_counts_are_scaled_and_said(tmp_path: Path) -> None:
    counts = torch.zeros((NUM_LAYERS, 10), dtype=torch.int32)
    counts[MOE] = 40
    counts[2, 5] -= 3
    torch.save({"rank": 0, "logical_count": counts[None]}, tmp_path / "d.pt")
    stats = read_sglang_dump(tmp_path / "d.pt", SHAPE)
    assert stats.num_tokens == 200
    assert np.all(stats.counts.sum(axis=1) == 400)
    assert stats.source == "SGLang, d.pt, scaled to 200 tokens"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weights": torch.zeros(2)}, "expected a dump of SGLang's recorder .* found weights"),
        (torch.zeros(2), "found ndarray"),
        ({"records": [], "last_physical_to_logical_map": SLOTS}, "was it recording"),
        ({"records": [{"x": 1}]}, "expected last_physical_to_logical_map"),
        ({"records": [{"x": 1}], "last_physical_to_logical_map": SLOTS}, "a tensor global_physical_count"),
        (
            {"records": [{"topk_ids_of_layer": 1}], "last_physical_to_logical_map": SLOTS},
            "record 0: expected",
        ),
        (
            {"records": [per_token_record(random_trace(2), 0)], "last_physical_to_logical_map": SLOTS + 9},
            "map: expected experts 0 to 9, found 9 to 18",
        ),
        (
            {"records": [per_token_record(random_trace(2), 0)], "last_physical_to_logical_map": SLOTS[:, :5]},
            "expected slots up to 4",
        ),
        ({"logical_count": torch.ones((1, 9, 10))}, r"expected 3 \(MoE\) or 4 \(all\) layers"),
        ({"logical_count": torch.ones((1, 4, 11))}, "expected 10 experts, found 11"),
        ({"logical_count": torch.full((1, 4, 10), torch.nan)}, "negative or not finite"),
        ({"logical_count": torch.full((1, 4, 10), -1)}, "negative or not finite"),
        ({"logical_count": torch.zeros((1, 4, 10))}, "layer 1 has no tokens"),
        ({"logical_count": torch.zeros(4)}, r"expected numbers \[..., layers, experts\]"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "d.pt")
    with pytest.raises(RoutingFileError, match=message):
        read_sglang_dump(tmp_path / "d.pt", SHAPE)


# Expert locations.


def plan_of(masks: np.ndarray[Any, Any]) -> Plan:
    """`masks` [workers, layers, experts]; workers "gpu0", "gpu1", ..."""
    workers = tuple(PlannedTier(f"gpu{i}", "box", f"cuda:{i}", "vram", 10**9) for i in range(len(masks)))
    return Plan(
        SHAPE.name,
        SHAPE.fingerprint,
        like_layers(SHAPE.moe_layers, "bfloat16", 768),
        "bfloat16",
        workers,
        HolderTable.from_masks(masks),
        "test",
    )


def uneven_masks() -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Three workers: seven, two and one expert a layer."""
    masks = np.zeros((3, 3, 10), dtype=bool)
    masks[0, :, :7], masks[1, :, 7:9], masks[2, :, 9] = True, True, True
    return masks


def test_a_location_is_what_sglang_accepts(tmp_path: Path) -> None:
    plan = plan_of(uneven_masks())
    location = expert_location(plan, SHAPE, ["gpu0", "gpu1", "gpu2"])
    location.save(tmp_path / "location.json")
    document = json.loads((tmp_path / "location.json").read_text())
    # SGLang passes all keys of the object on as arguments, so a second one would be an error there.
    assert list(document) == ["physical_to_logical_map"]
    slots = np.array(document["physical_to_logical_map"])
    assert slots.shape == (NUM_LAYERS, 3 * 7)
    assert location.num_redundant_experts == 11
    for row in slots:
        assert set(row.tolist()) == set(range(10))
    assert location.arguments("location.json") == [
        "--ep-size",
        "3",
        "--ep-num-redundant-experts",
        "11",
        "--init-expert-location",
        "location.json",
    ]


def test_every_rank_holds_what_the_plan_gives_it() -> None:
    masks = uneven_masks()
    location = expert_location(plan_of(masks), SHAPE, ["gpu0", "gpu1", "gpu2"])
    by_rank = location.physical_to_logical.reshape(NUM_LAYERS, 3, 7)
    for row, layer in enumerate(MOE):
        for rank in range(3):
            held = by_rank[layer, rank].tolist()
            assert set(np.flatnonzero(masks[rank, row])) <= set(held)
            assert len(set(held)) == 7


def test_spare_slots_go_to_the_hottest_experts() -> None:
    trace = np.tile([[0, 4]], (50, 3, 1))
    stats = RoutingStats.from_trace(SHAPE, np.concatenate([trace, random_trace(20)]), "text")
    location = expert_location(plan_of(uneven_masks()), SHAPE, ["gpu0", "gpu1", "gpu2"], stats)
    last_rank = location.physical_to_logical[MOE, 14:]
    assert np.all((last_rank == 0).any(axis=1) & (last_rank == 4).any(axis=1))


def test_a_location_needs_all_experts_on_its_ranks() -> None:
    plan = plan_of(uneven_masks())
    with pytest.raises(
        PlanError, match=r"expert 9 of layer 1 is on none of gpu0, gpu1 \(3 experts are not\)"
    ):
        expert_location(plan, SHAPE, ["gpu0", "gpu1"])
    with pytest.raises(PlanError, match="expected different workers"):
        expert_location(plan, SHAPE, ["gpu0", "gpu0", "gpu1"])
    with pytest.raises(PlanError, match="'gpu9' is not a device of the plan"):
        expert_location(plan, SHAPE, ["gpu9"])
    with pytest.raises(PlanError, match="plan for another model"):
        expert_location(plan, small_shape(num_experts=12), ["gpu0"])


def test_counts_for_sglang_are_read_back_as_they_were(tmp_path: Path) -> None:
    stats = RoutingStats.from_trace(SHAPE, random_trace(40), "text")
    save_logical_count(stats, SHAPE, tmp_path / "counts.json")
    document = json.loads((tmp_path / "counts.json").read_text())
    assert list(document) == ["logical_count"]
    assert np.array(document["logical_count"]).shape == (NUM_LAYERS, 10)
    again = read_sglang_dump(tmp_path / "counts.json", SHAPE)
    assert np.array_equal(again.counts, stats.counts)
    assert again.num_tokens == 40
    (tmp_path / "other.json").write_text('{"physical_to_logical_map": []}')
    with pytest.raises(RoutingFileError, match="this is a placement"):
        read_sglang_dump(tmp_path / "other.json", SHAPE)
    (tmp_path / "ragged.json").write_text('{"logical_count": [[1], [1, 2]]}')
    with pytest.raises(RoutingFileError, match="rows of one length"):
        read_sglang_dump(tmp_path / "ragged.json", SHAPE)
