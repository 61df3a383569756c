"""Any known file is told by its contents; published tables of counts are read."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from placement.errors import RoutingFileError
from placement.given.stats import RoutingStats
from placement.interop.count_tables import read_count_tables, read_counts
from placement.interop.read import detect, read_routing
from tests.placement.real_routing import FIXTURES, MIXTRAL, OLMOE, olmoe_documents, olmoe_stats
from tests.placement.shapes import small_shape

SHAPE = small_shape()
TABLE = np.full((3, 10), 4)


def test_tables_by_document_are_read() -> None:
    documents = read_count_tables(FIXTURES / "olmoe-coding.npz", OLMOE)
    assert np.array_equal(documents, olmoe_documents("coding"))
    stats = read_counts(FIXTURES / "olmoe-coding.npz", OLMOE)
    assert np.array_equal(stats.counts, olmoe_stats("coding").counts)
    assert stats.num_tokens == 6400


def test_tables_by_subject_are_read() -> None:
    subjects = read_count_tables(FIXTURES / "mixtral-mmlu.npz", MIXTRAL)
    assert subjects.shape[1:] == (32, 8)
    assert len(subjects) > 1
    law = read_counts(FIXTURES / "mixtral-mmlu.npz", MIXTRAL, only=["international_law"])
    assert law.num_tokens == 1920
    assert law.source == "mixtral-mmlu.npz (international_law)"
    with pytest.raises(RoutingFileError, match="found no poetry"):
        read_counts(FIXTURES / "mixtral-mmlu.npz", MIXTRAL, only=["poetry"])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"counts": TABLE * 0.5}, "expected whole numbers"),
        ({"counts": np.full((3, 9), 4)}, r"\[layers, 10\], found int64 \[3, 9\]"),
        ({"counts": np.full((2, 7, 10), 4)}, r"expected 3 \(MoE\) or 4 \(all\) layers"),
        ({"counts": -TABLE}, "expected no negative counts"),
        ({}, "expected at least one table"),
    ],
)
def test_other_tables_are_refused(
    tmp_path: Path, arrays: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.int64]]], message: str
) -> None:
    np.savez(tmp_path / "t.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(RoutingFileError, match=message):
        read_counts(tmp_path / "t.npz", SHAPE)


def test_every_kind_is_told_by_its_contents(tmp_path: Path) -> None:
    RoutingStats.from_counts(SHAPE, TABLE, 20, "text").save(tmp_path / "potluck")
    torch.save({"logical_count": torch.from_numpy(TABLE)}, tmp_path / "sglang-dump")
    torch.save({"expert_load_pass": torch.from_numpy(TABLE)}, tmp_path / "vllm-loads")
    (tmp_path / "responses").write_text(json.dumps({"choices": [{"routed_experts": [[[0, 1]] * 3] * 2}]}))
    (tmp_path / "imatrix").write_bytes((FIXTURES / "imatrix-step35.gguf").read_bytes())
    with open(tmp_path / "count-tables", "wb") as file:
        np.savez(file, counts=TABLE[None])
    for path in tmp_path.iterdir():
        assert detect(path) == path.name
    for name in ("potluck", "sglang-dump", "responses", "imatrix", "count-tables"):
        read_routing(tmp_path / name, SHAPE).check(SHAPE)


def test_kinds_that_share_a_container_are_told_apart(tmp_path: Path) -> None:
    np.savez(tmp_path / "loads.npz", expert_load_window=TABLE[None])
    assert detect(tmp_path / "loads.npz") == "vllm-loads"
    np.save(tmp_path / "loads.npy", TABLE)
    assert detect(tmp_path / "loads.npy") == "vllm-loads"
    (tmp_path / "counts.json").write_text('{"logical_count": [[1]]}')
    assert detect(tmp_path / "counts.json") == "sglang-dump"
    (tmp_path / "stats.jsonl").write_text('{"record_type": "eplb_load_meta"}\n{"record_type": "x"}\n')
    assert detect(tmp_path / "stats.jsonl") == "vllm-loads"
    assert detect(tmp_path) == "sglang-dump"


def test_a_placement_is_told_from_statistics(tmp_path: Path) -> None:
    path = tmp_path / "init-expert-location.json"
    path.write_text(json.dumps({"physical_to_logical_map": [list(range(10))] * 4}))
    with pytest.raises(RoutingFileError, match=r"this is a placement \(physical_to_logical_map.*not stat"):
        read_routing(path, SHAPE)


def test_a_pipe_or_a_device_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(RoutingFileError, match=r"it is a (pipe|device).*expected routing statistics"):
            read_routing(path, SHAPE)


def test_what_is_of_no_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hot experts: 3, 7")
    with pytest.raises(RoutingFileError, match=r"notes\.txt: of no known kind"):
        read_routing(tmp_path / "notes.txt", SHAPE)
    with pytest.raises(RoutingFileError, match="kind 'csv': expected potluck, sglang-dump"):
        read_routing(tmp_path / "notes.txt", SHAPE, kind="csv")
    with pytest.raises(RoutingFileError, match="No such file"):
        read_routing(tmp_path / "none", SHAPE)
    (tmp_path / "damaged.npz").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(RoutingFileError, match="not a readable zip archive"):
        read_routing(tmp_path / "damaged.npz", SHAPE)


@pytest.mark.parametrize("kind", [None, "sglang-dump"])
def test_a_name_that_no_file_can_have_is_refused_in_one_line(tmp_path: Path, kind: str | None) -> None:
    with pytest.raises(RoutingFileError, match="File name too long"):
        read_routing(tmp_path / ("x" * 300), SHAPE, kind=kind)


COUNTS_JSON = json.dumps({"logical_count": np.full((4, 10), 4).tolist()}).encode()
LOADS_JSON = json.dumps(
    {"record_type": "eplb_load_stats", "expert_load": TABLE.tolist(), "p2l_map": [list(range(10))] * 3}
).encode()


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("sglang-dump", COUNTS_JSON),
        ("sglang-dump", b"\xef\xbb\xbf" + COUNTS_JSON),
        ("sglang-dump", b"\n" * 100 + COUNTS_JSON),
        ("vllm-loads", LOADS_JSON),
        ("vllm-loads", b"\xef\xbb\xbf" + LOADS_JSON),
    ],
)
@pytest.mark.parametrize("name", ["a.json", "a.txt", "a.pt", "a.npz", "a"])
def test_json_is_read_under_any_name_with_a_byte_order_mark_or_without(
    tmp_path: Path, name: str, kind: str, content: bytes
) -> None:
    (tmp_path / name).write_bytes(content)
    assert detect(tmp_path / name) == kind
    assert read_routing(tmp_path / name, SHAPE).num_tokens == 20


@pytest.mark.parametrize("name", ["a.pt", "a.npz", "a.json", "a"])
def test_archives_are_read_under_any_name(tmp_path: Path, name: str) -> None:
    for content in ({"expert_load_pass": TABLE}, {"logical_count": np.full((4, 10), 4)}):
        torch.save({key: torch.from_numpy(value) for key, value in content.items()}, tmp_path / name)
        assert read_routing(tmp_path / name, SHAPE).num_tokens == 20
    with open(tmp_path / name, "wb") as file:
        np.savez(file, expert_load_pass=TABLE)
    assert read_routing(tmp_path / name, SHAPE).num_tokens == 20
