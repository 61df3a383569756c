"""The whole runtime gives the same bits from quantised files, however a run is cut and shared."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.format_invariance import MIXED, differences, hashes, types_of
from benchmarks.random_gguf import SMALL, write_random_gguf


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_types_that_differ_within_an_expert_and_between_layers_give_one_hash(tmp_path: Path) -> None:
    path = write_random_gguf(tmp_path / "mixed.gguf", SMALL, types_of(MIXED))
    found = list(hashes(path, tokens=2))
    assert differences(found) == []
    # Two instruction sets at least, two threads each; chunks and a neighbour; workers and drafts.
    assert len(found) >= 2 * 2 + 3 + 4 * 4


def test_another_hash_is_named() -> None:
    assert differences([("a", "1"), ("b", "1"), ("c", "2")]) == ["c"]
