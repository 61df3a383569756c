"""Which files a model is: the same bytes have one identity, other ones another, and size costs no time."""

from __future__ import annotations

import json
import os
import shutil
import struct
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest

from models.tiny.gguf_file import write_gguf
from orchestrator.cli.even_plan import even_plan
from placement.errors import CheckpointError, PlanError
from tests.tiny_checkpoint import write_random_checkpoint
from tests.workers.formats.gguf_files import in_parts, trunk_and_mtp
from workers.formats.identity import (
    IDENTITY,
    NUM_SAMPLES,
    SAMPLE_BYTES,
    check_made_for,
    model_identity,
    sample_offsets,
)
from workers.formats.open_model import load_config

NUM_TRUNK = 4


def checkpoint(folder: Path, *, seed: int, num_shards: int = 1) -> Path:
    return write_random_checkpoint(
        folder, seed=seed, num_layers=NUM_TRUNK, moe_layers=(2, 3), num_mtp_layers=2, num_shards=num_shards
    )


def as_gguf(folder: Path, *, seed: int) -> Path:
    path = folder / "whole.gguf"
    write_gguf(checkpoint(folder / f"from-{seed}", seed=seed), path)
    return path


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def write_zeros(
    path: Path, tensor: str, num_bytes: int, notes: Mapping[str, str] = MappingProxyType({})
) -> None:
    """A safetensors file of one tensor of zeros, which take no room on the disk."""
    entry = {"dtype": "U8", "shape": [num_bytes], "data_offsets": [0, num_bytes]}
    header = json.dumps({tensor: entry, "__metadata__": dict(notes)}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    os.truncate(path, 8 + len(header) + num_bytes)


def test_the_same_bytes_elsewhere_have_the_same_identity(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "m", seed=1, num_shards=3)
    copy = shutil.copytree(model, tmp_path / "copy")
    assert model_identity(model) == model_identity(copy)
    assert len(model_identity(model).hex) == 64
    assert [file.name for file in model_identity(model).files] == [
        "config.json",
        *(f"model-{number:05}-of-00003.safetensors" for number in (1, 2, 3)),
    ]


@pytest.mark.parametrize("make", [checkpoint, as_gguf])
def test_other_weights_of_the_same_shapes_differ(tmp_path: Path, make: Callable[..., Path]) -> None:
    paths = []
    for seed in (1, 2):
        (tmp_path / str(seed)).mkdir()
        paths.append(make(tmp_path / str(seed), seed=seed))
    first, second = map(model_identity, paths)
    assert [file.num_bytes for file in first.files] == [file.num_bytes for file in second.files]
    assert first.hex != second.hex


def test_any_part_of_a_split_model_gives_the_same_identity_and_a_changed_part_another(tmp_path: Path) -> None:
    parts = in_parts(as_gguf(tmp_path, seed=1), tmp_path / "split", 3)
    before = model_identity(parts[0])
    assert len(before.files) == 3
    assert model_identity(parts[2]) == before
    flip(parts[1], parts[1].stat().st_size - 1)
    assert model_identity(parts[0]).hex != before.hex


def test_a_gguf_file_may_be_called_something_else_and_have_mtp_layers_beside_it(tmp_path: Path) -> None:
    trunk, mtp = trunk_and_mtp(as_gguf(tmp_path, seed=1), tmp_path, NUM_TRUNK)
    with_mtp = model_identity(trunk)
    mtp.unlink()
    assert model_identity(trunk.rename(tmp_path / "other.gguf")).hex == with_mtp.hex


def test_a_changed_header_is_seen_where_no_sample_lies(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    found = []
    for note in ("x", "y"):
        # The letter lies behind the first sample and before the second.
        notes = {"note": "0" * (SAMPLE_BYTES + 100) + note}
        write_zeros(tmp_path / "model.safetensors", "a", 2**20, notes)
        found.append(model_identity(tmp_path).files[1])
    assert found[0].samples_sha256 == found[1].samples_sha256
    assert found[0].header_sha256 != found[1].header_sha256


@pytest.mark.parametrize("num_bytes", [0, 1, 4096, 4097, 65536, 65537, 10**6, 5 * 10**10])
def test_samples_lie_in_the_file_and_reach_both_its_ends(num_bytes: int) -> None:
    offsets = sample_offsets(num_bytes)
    assert len(offsets) <= NUM_SAMPLES + 1
    if num_bytes:
        assert offsets[0] == 0
        assert num_bytes - SAMPLE_BYTES <= offsets[-1] < num_bytes
    if num_bytes <= NUM_SAMPLES * SAMPLE_BYTES:
        covered = {place for offset in offsets for place in range(offset, offset + SAMPLE_BYTES)}
        assert covered >= set(range(num_bytes))


def test_two_hundred_gigabytes_take_less_than_a_second(tmp_path: Path) -> None:
    """They are zeros, which take no room on the disk; reading them all would take minutes all the same."""
    (tmp_path / "config.json").write_text("{}")
    weight_map = {}
    for number in range(100):
        name = f"model-{number:05}.safetensors"
        write_zeros(tmp_path / name, f"t{number}", 2 * 10**9)
        weight_map[f"t{number}"] = name
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    # The least of three: other work may take the processors.
    took = []
    for _ in range(3):
        began = time.perf_counter()
        identity = model_identity(tmp_path)
        took.append(time.perf_counter() - began)
    assert sum(file.num_bytes for file in identity.files) > 200 * 10**9
    assert min(took) < 1


def test_a_plan_for_other_files_is_refused_and_the_file_is_named(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "m", seed=1, num_shards=3)
    plan = even_plan(load_config(model).shape("m"), 0, "float32")
    check_made_for(plan, model)  # a plan that says nothing of files fits any
    made = replace(plan, digests=model_identity(model).digests)
    check_made_for(made, model)
    changed = model / "model-00002-of-00003.safetensors"
    flip(changed, changed.stat().st_size - 1)
    with pytest.raises(
        PlanError, match=r"made for other files .*: model-00002-of-00003\.safetensors is another"
    ):
        check_made_for(made, model)
    without = {name: digest for name, digest in made.digests.items() if "00002" not in name}
    with pytest.raises(PlanError, match=r"model-00002-of-00003\.safetensors was not among them"):
        check_made_for(replace(made, digests=without), model)
    more = model_identity(model).digests | {IDENTITY: "0" * 64, "more.safetensors": "0"}
    with pytest.raises(PlanError, match=r"more\.safetensors is missing"):
        check_made_for(replace(made, digests=more), model)


def test_a_missing_configuration_is_named(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "m", seed=1)
    (model / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json: No such file"):
        model_identity(model)
