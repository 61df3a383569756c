"""Damaged model files are read, or refused in one line; `benchmarks.fuzz_formats` alone does many more."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.fuzz_formats import Kind, fuzz

NUM_CASES = 60


@pytest.mark.parametrize("kind", list(Kind))
def test_damaged_files_are_read_or_refused(kind: Kind, tmp_path: Path) -> None:
    outcome = fuzz(kind, iter(range(NUM_CASES)), tmp_path)
    assert outcome.failures == ()
    assert outcome.num_read + sum(outcome.refused.values()) == NUM_CASES
    assert outcome.num_read > 0
    assert len(outcome.refused) > 3
