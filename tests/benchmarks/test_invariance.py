"""The whole runtime gives the same bits from all forms of weights, however a run is cut and shared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.invariance import (
    CHUNKS,
    DRAFTS,
    MIXED,
    NAMES,
    NUM_WORKERS,
    SHIPPED,
    Model,
    differences,
    digest,
    fingerprint,
    hashes,
)
from orchestrator.session import load_local
from placement.weight_format import FORMATS
from workers.formats.open_model import open_model
from workers.kernels import instruction_set


@pytest.mark.parametrize("name", [MIXED, "fp8_e4m3"])
def test_one_hash_over_everything_that_may_not_matter(tmp_path: Path, name: str) -> None:
    before = torch.get_num_threads(), instruction_set()
    found = list(hashes(Model.called(name, tmp_path, 1), torch.bfloat16, tokens=2))
    assert differences(found) == []
    said = [what for what, _ in found]
    assert len(set(said)) == len(said)
    assert {"baseline, 1 threads", "baseline, 2 threads", "beside another text"} <= set(said)
    assert {f"prompt in chunks of {size}" for size in CHUNKS} <= set(said)
    for number in NUM_WORKERS:
        for drafts in DRAFTS:
            assert any(what.endswith(f"on {number} workers, {drafts} drafts") for what in said)
    assert (torch.get_num_threads(), instruction_set()) == before


def test_every_form_that_runs_is_among_the_models() -> None:
    assert set(FORMATS) | {MIXED, SHIPPED.name} == set(NAMES)


def test_the_shipped_models_placements_are_as_many_as_asked_for(tmp_path: Path) -> None:
    found = list(hashes(Model.called(SHIPPED.name, tmp_path, 2), torch.float32, tokens=2))
    assert sum("placement" in what for what, _ in found) == 2 * len(DRAFTS)
    assert differences(found) == []


def test_a_hash_tells_another_weight_another_token_and_another_bit(tmp_path: Path) -> None:
    model = Model.called("q8_0", tmp_path, 1)
    head = load_local(open_model(model.path), torch.float32)
    expected = fingerprint(head, head.experts, model.prompt, 2)
    last = head.weights.layers[-1]
    other = replace(last, ffn_norm=replace(last.ffn_norm, weight=last.ffn_norm.weight * 1.01))
    head.weights = replace(head.weights, layers=(*head.weights.layers[:-1], other))
    assert fingerprint(head, head.experts, model.prompt, 2) != expected
    hidden = torch.ones(2, 3)
    assert digest([1, 2], hidden) == digest((1, 2), hidden.clone())
    assert digest([1, 3], hidden) != digest([1, 2], hidden)
    hidden[1, 2] = torch.nextafter(hidden[1, 2], torch.tensor(2.0))
    assert digest([1, 2], hidden) != digest([1, 2], torch.ones(2, 3))


def test_another_hash_is_named() -> None:
    assert differences([("a", "1"), ("b", "1"), ("c", "2")]) == ["c"]
