"""Loads as vLLM's balancer keeps and writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from placement.errors import RoutingFileError
from placement.given.stats import count_experts
from placement.interop.vllm_loads import read_vllm_loads
from tests.placement.shapes import small_shape

SHAPE = small_shape()
# vLLM's first arrangement: the experts, then two redundant ones.
SLOTS = np.tile(np.append(np.arange(10), [0, 1]), (3, 1))


def random_trace(num_tokens: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.int64]]:
    scores = np.random.default_rng(seed).random((num_tokens, SHAPE.num_moe_layers, SHAPE.num_experts))
    return np.argsort(scores, axis=2)[:, :, : SHAPE.top_k]


def slot_loads(trace: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.int32]]:
    """int32 [3, 12]: half of experts 0 and 1 on their copies."""
    counts = count_experts(trace, 10).astype(np.int32)
    copies = counts[:, :2] // 2
    return np.concatenate([counts[:, :2] - copies, counts[:, 2:], copies], axis=1)


WINDOW = np.stack(
    [slot_loads(random_trace(n, seed=n)) for n in (4, 8, 3)] + [np.zeros((3, 12), dtype=np.int32)]
)
COUNTS = count_experts(np.concatenate([random_trace(n, seed=n) for n in (4, 8, 3)]), 10)


@pytest.mark.parametrize("suffix", [".pt", ".npz"])
def test_a_window_of_steps_adds_up_by_expert(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"load{suffix}"
    arrays: dict[str, Any] = {"expert_load_window": WINDOW, "physical_to_logical_map": SLOTS}
    if suffix == ".pt":
        torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, path)
    else:
        np.savez(path, **arrays)
    stats = read_vllm_loads(path, SHAPE)
    assert np.array_equal(stats.counts, COUNTS)
    assert stats.num_tokens == 15
    assert stats.source == f"vLLM EPLB, load{suffix}"


def test_a_lone_array_of_experts_is_read(tmp_path: Path) -> None:
    np.save(tmp_path / "load.npy", COUNTS.astype(np.int64))
    assert np.array_equal(read_vllm_loads(tmp_path / "load.npy", SHAPE).counts, COUNTS)
    torch.save(torch.from_numpy(COUNTS.astype(np.int64)), tmp_path / "load.pt")
    assert np.array_equal(read_vllm_loads(tmp_path / "load.pt", SHAPE).counts, COUNTS)


def test_lines_of_statistics_add_up(tmp_path: Path) -> None:
    meta = {"record_type": "eplb_load_meta", "version": 1, "num_layers": 3, "num_redundant_experts": 2}
    lines = [meta] + [
        {
            "record_type": "eplb_load_stats",
            "version": 1,
            "step": step,
            "num_ranks": 2,
            "expert_load": loads.tolist(),
            "p2l_map": SLOTS.tolist(),
        }
        for step, loads in enumerate(WINDOW)
    ]
    path = tmp_path / "stats.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert np.array_equal(read_vllm_loads(path, SHAPE).counts, COUNTS)
    path.write_text(json.dumps(lines[1]) + "\n")
    assert read_vllm_loads(path, SHAPE).num_tokens == 4


def test_decayed_loads_are_scaled_to_whole_tokens(tmp_path: Path) -> None:
    np.save(tmp_path / "load.npy", COUNTS * 0.97)
    stats = read_vllm_loads(tmp_path / "load.npy", SHAPE)
    assert stats.num_tokens == 15
    assert np.array_equal(stats.counts, COUNTS)
    assert stats.source.endswith("scaled to 15 tokens")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"load": WINDOW}, "expected an array expert_load_window or .* found load"),
        ({"expert_load_pass": WINDOW[0]}, "expected 10 experts, found 12; with redundant experts"),
        ({"expert_load_pass": WINDOW[0], "p2l_map": SLOTS[:, :9]}, "expected as many slots in loads and map"),
        ({"expert_load_pass": WINDOW[0], "p2l_map": SLOTS + 5}, "found 5 to 14"),
        ({"expert_load_pass": WINDOW[0], "p2l_map": SLOTS * 1.0}, "expected whole numbers"),
        ({"expert_load_pass": np.ones((7, 10))}, r"expected 3 \(MoE\) or 4 \(all\) layers of small, found 7"),
        ({"expert_load_pass": np.array(["a"])}, "expected numbers"),
        ({"expert_load_pass": np.eye(3, 10) * 1000}, "has 1000 tokens of 500"),
        ({"expert_load_pass": np.full((3, 10), 1e300)}, "fewer than 2.53 choices"),
    ],
)
def test_other_arrays_are_refused(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "load.npz", **arrays)
    with pytest.raises(RoutingFileError, match=message):
        read_vllm_loads(tmp_path / "load.npz", SHAPE)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected JSON objects .*, found none"),
        ("{", "not JSON"),
        ('{"record_type": "eplb_initial_mapping"}', "expected records of type eplb_load_stats"),
        ('{"record_type": "eplb_load_stats", "expert_load": [[1], [1, 2]]}', "rows of one length"),
        (
            '{"record_type": "eplb_load_stats", "expert_load": [[1]]}',
            "p2l_map: expected rows of one length",
        ),
        ('{"a": 1}\n{"a": \n', "load.jsonl:2: not JSON"),
        ("[1, 2]", "item 0: expected a JSON object, found 1"),
    ],
)
def test_other_lines_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "load.jsonl").write_text(text)
    with pytest.raises(RoutingFileError, match=message):
        read_vllm_loads(tmp_path / "load.jsonl", SHAPE)


def test_arrays_of_objects_are_not_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "load.npz", expert_load=np.array([{"a": 1}], dtype=object))
    with pytest.raises(RoutingFileError, match="array 'expert_load': values of type 'object'"):
        read_vllm_loads(tmp_path / "load.npz", SHAPE)
    with pytest.raises(RoutingFileError, match="No such file"):
        read_vllm_loads(tmp_path / "none.npy", SHAPE)
