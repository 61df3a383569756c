"""Experts on a disk give the bits of experts in memory; a disk that fails takes one request with it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.random_gguf import SMALL, FileTypes, write_random_gguf
from placement.errors import CheckpointError, PlanDoesNotFit, PlanError
from placement.weight_format import FORMATS
from tests.tiny_checkpoint import write_random_checkpoint
from tests.workers.formats.fp8_files import experts_in_fp8
from transport.expert_rows import ExpertRows
from workers import fixed_point
from workers.disk.direct_file import DirectFile
from workers.disk.tier import DiskTier
from workers.formats.open_model import kept_forms, open_model
from workers.kernels import ExpertNotHeld
from workers.memory import file_check
from workers.model_config import Step35Config
from workers.store import ExpertStore, in_one_form

FORMS = [form for form in FORMATS if form != "fp8_e4m3"]


def rows_of(config: Step35Config, num_rows: int, seed: int = 0, experts: int | None = None) -> ExpertRows:
    rng = np.random.default_rng(seed)
    hidden = rng.standard_normal((num_rows, config.hidden_size), dtype=np.float32)
    of, k = experts or config.moe_num_experts, config.moe_top_k
    ids = np.stack([rng.permutation(of)[:k] for _ in range(num_rows)]).astype(np.int32)
    weights = rng.random((num_rows, k), dtype=np.float32)
    return ExpertRows(hidden, ids, weights, fixed_point.scale_exponents(torch.from_numpy(hidden)))


@pytest.fixture(scope="module")
def gguf_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A layer for each form of GGUF files, and one that mixes them."""
    experts = (*((form,) * 3 for form in FORMS), ("q4_k", "q4_k", "q5_k"))
    shape = replace(SMALL, moe_layers=len(experts), mtp_layers=0)
    path = tmp_path_factory.mktemp("model") / "random.gguf"
    return write_random_gguf(path, shape, FileTypes(experts, "float32", "float32", "float32"))


@pytest.fixture(scope="module")
def bfloat16_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(tmp_path_factory.mktemp("model"), seed=2, dtype=torch.bfloat16)


def both(
    path: Path, dtype: str = "float32", num_slots: float = 6.0
) -> tuple[Step35Config, ExpertStore, DiskTier]:
    """All experts of a model in memory, and on a disk with a cache of `num_slots` of the largest."""
    config, checkpoint = open_model(path)
    formats = kept_forms(checkpoint, config, dtype)
    experts = {layer: range(config.moe_num_experts) for layer in config.moe_layers}
    store = ExpertStore.load(checkpoint, config, experts, formats=formats)
    stored = [checkpoint.expert(layer, 0, config) for layer in config.moe_layers]
    largest = max(sum(part.data.nbytes + 2 * 4096 for part in parts) for parts in stored)
    tier = DiskTier(checkpoint, config, experts, formats=formats, cache_bytes=int(num_slots * largest))
    return config, store, tier


def assert_same(store: ExpertStore, tier: DiskTier, layer: int, rows: ExpertRows) -> None:
    expected, found = store.forward(layer, rows), tier.forward(layer, rows)
    assert np.array_equal(found.values, expected.values)
    assert np.array_equal(found.saturated, expected.saturated)


def test_every_form_of_gguf_files_gives_the_same_bits(gguf_path: Path) -> None:
    config, store, tier = both(gguf_path, num_slots=150)
    assert len(config.moe_layers) == len(FORMS) + 1
    for seed in range(3):
        for layer in config.moe_layers:
            assert_same(store, tier, layer, rows_of(config, 1 + seed, seed))
    assert 0 < tier.counts.hits < tier.counts.asked


@pytest.mark.parametrize("num_slots", [1.0, 2.5, 5.0, 1000.0])
def test_a_cache_of_any_size_gives_the_same_bits(gguf_path: Path, num_slots: float) -> None:
    """Among them one that holds fewer experts than a token has, and prompts that need all."""
    config, store, tier = both(gguf_path, num_slots=num_slots)
    for seed, num_rows in enumerate((1, 1, 70, 2, 300)):
        assert_same(store, tier, config.moe_layers[0], rows_of(config, num_rows, seed))
        assert_same(store, tier, config.moe_layers[1], rows_of(config, num_rows, seed))
    if num_slots == 1000:
        read = tier.counts.read_bytes
        assert_same(store, tier, config.moe_layers[0], rows_of(config, 300))
        assert tier.counts.read_bytes == read


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_safetensors_give_the_same_bits_converted_or_not(
    tmp_path: Path, stored: torch.dtype, dtype: str
) -> None:
    write_random_checkpoint(tmp_path, seed=3, dtype=stored, expert_names="numbered", num_shards=2)
    config, store, tier = both(tmp_path, dtype)
    for layer in config.moe_layers:
        assert_same(store, tier, layer, rows_of(config, 3, layer))


def test_part_of_the_experts_and_rows_that_want_none(bfloat16_dir: Path) -> None:
    config, checkpoint = open_model(bfloat16_dir)
    tier = DiskTier(
        checkpoint, config, {2: [5, 0], 4: [3], 5: []}, formats=in_one_form((2, 4), torch.bfloat16),
        cache_bytes=10**6,
    )  # fmt: skip
    assert tier.experts == {2: (5, 0), 4: (3,)}
    assert tier.num_experts == 3
    assert tier.held_bytes <= 10**6
    rows = rows_of(config, 3)
    for layer in (2, 3, 5):
        with pytest.raises(ExpertNotHeld, match=rf"layer {layer}: expert \d+ is not held here"):
            tier.forward(layer, rows)
        nothing = tier.forward(layer, rows._replace(expert_ids=np.full_like(rows.expert_ids, -1)))
        assert not nothing.values.any()
        assert nothing.values.shape == rows.hidden.shape


@pytest.mark.parametrize("experts", [{0: [1]}, {2: [16]}, {2: [3, 3]}])
def test_experts_the_model_does_not_have_are_refused(
    bfloat16_dir: Path, experts: dict[int, list[int]]
) -> None:
    config, checkpoint = open_model(bfloat16_dir)
    with pytest.raises(PlanError, match="layer"):
        DiskTier(checkpoint, config, experts, formats=in_one_form(experts, torch.bfloat16), cache_bytes=10**6)


def test_a_cache_without_room_for_one_expert_is_refused(bfloat16_dir: Path) -> None:
    config, checkpoint = open_model(bfloat16_dir)
    with pytest.raises(PlanDoesNotFit, match=r"a cache of 10\.0 kB for .*room for one at least"):
        DiskTier(checkpoint, config, {2: [1]}, formats=in_one_form([2], torch.bfloat16), cache_bytes=10_000)


def test_a_file_that_is_written_to_fails_the_next_request(
    gguf_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_check, "CHECK_FILES_S", 0.0)
    path = tmp_path / "copy.gguf"
    path.write_bytes(gguf_path.read_bytes())
    config, checkpoint = open_model(path)
    layer = config.moe_layers[0]
    formats = {layer: checkpoint.expert_format(layer, config)}
    experts = {layer: range(config.moe_num_experts)}
    tier = DiskTier(checkpoint, config, experts, formats=formats, cache_bytes=8 * 10**6)
    tier.forward(layer, rows_of(config, 2))
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(bytes(1000))
    os.utime(path, (1, 1))
    with pytest.raises(CheckpointError, match=r"copy\.gguf"):
        tier.forward(layer, rows_of(config, 2))


def test_a_read_error_fails_one_request_and_the_next_succeeds(
    gguf_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The file is whole again within what is otherwise a moment.
    monkeypatch.setattr(file_check, "CHECK_FILES_S", 1e9)
    path = tmp_path / "copy.gguf"
    content = gguf_path.read_bytes()
    path.write_bytes(content)
    config, checkpoint = open_model(path)
    layers = config.moe_layers[-2:]
    formats = {layer: checkpoint.expert_format(layer, config) for layer in layers}
    experts = {layer: range(config.moe_num_experts) for layer in layers}
    store = ExpertStore.load(open_model(gguf_path)[1], config, experts, formats=formats)
    tier = DiskTier(checkpoint, config, experts, formats=formats, cache_bytes=8 * 10**6)
    assert_same(store, tier, layers[0], rows_of(config, 2))
    os.truncate(path, len(content) // 2)
    with pytest.raises(CheckpointError, match=r"copy\.gguf: ends at byte .*cut while it was in use"):
        tier.forward(layers[1], rows_of(config, 2))
    with pytest.raises(CheckpointError, match=r"copy\.gguf: ends at byte"):
        tier.forward(layers[1], rows_of(config, 40))
    with path.open("r+b") as file:
        file.seek(len(content) // 2)
        file.write(content[len(content) // 2 :])
    for seed in range(4):
        for layer in layers:
            assert_same(store, tier, layer, rows_of(config, 2 + 30 * seed, seed))


def test_a_disk_that_fails_now_and_then_never_gives_wrong_bits(
    gguf_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, store, tier = both(gguf_path, num_slots=7)
    read, rng = DirectFile.read, np.random.default_rng(1)

    def read_or_fail(file: DirectFile, buffer: memoryview, offset: int) -> int:
        if rng.random() < 0.05:
            buffer[:] = bytes(len(buffer))
            raise CheckpointError("the disk failed")
        return read(file, buffer, offset)

    monkeypatch.setattr(DirectFile, "read", read_or_fail)
    failures = 0
    for seed in range(60):
        layer, rows = config.moe_layers[seed % 2], rows_of(config, 1 + seed % 9, seed)
        try:
            found = tier.forward(layer, rows)
        except CheckpointError:
            failures += 1
            continue
        assert np.array_equal(found.values, store.forward(layer, rows).values)
    assert 0 < failures < 60


def test_fp8_experts_come_from_the_disk_with_their_scales(tmp_path: Path) -> None:
    """Matrices of 160 x 192 and back: squares of 128 x 128 and what is left of them."""
    write_random_checkpoint(
        tmp_path / "model",
        seed=4,
        hidden_size=192,
        moe_intermediate_size=160,
        num_experts=8,
    )
    config, store, tier = both(experts_in_fp8(tmp_path / "model"), "bfloat16", num_slots=20)
    for seed, num_rows in enumerate((1, 3, 40, 1)):
        for layer in config.moe_layers:
            assert_same(store, tier, layer, rows_of(config, num_rows, seed))
    assert 0 < tier.counts.hits < tier.counts.asked
