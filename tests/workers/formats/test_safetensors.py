"""Published names in every form, and files that are missing, cut short or of another model."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file, save_file

from placement.errors import CheckpointError
from placement.weight_format import FORMATS, FP8_E4M3, ExpertFormat
from tests.forks.forks import Forks
from tests.tiny_checkpoint import write_random_checkpoint
from tests.workers.formats.fp8_files import experts_in_fp8
from workers.formats.contents import directory_contents
from workers.formats.dequantise import float32_matrix, float32_rows
from workers.formats.safetensors import SafetensorsCheckpoint
from workers.formats.shards import INDEX_NAME, Shard, check_scales
from workers.model_config import Step35Config

MODEL = Path(__file__).parents[3] / "models" / "potluck-tiny"


@pytest.mark.parametrize("expert_names", ["stacked", "experts", "numbered"])
@pytest.mark.parametrize("num_shards", [1, 3])
@pytest.mark.parametrize("trunk_prefix", ["model.", "model.language_model."])
def test_an_expert_is_the_same_in_every_form(
    tmp_path: Path, expert_names: Any, num_shards: int, trunk_prefix: str
) -> None:
    reference = write_random_checkpoint(tmp_path / "reference", seed=3)
    written = load_file(reference / "model.safetensors")
    directory = write_random_checkpoint(
        tmp_path / "other",
        seed=3,
        expert_names=expert_names,
        num_shards=num_shards,
        trunk_prefix=trunk_prefix,
    )
    config, checkpoint = Step35Config.load(directory), SafetensorsCheckpoint.open(directory)
    for layer, expert in ((2, 0), (5, 15)):
        for part, found in zip(("gate", "up", "down"), checkpoint.expert(layer, expert, config), strict=True):
            assert torch.equal(found.data, written[f"model.layers.{layer}.moe.{part}_proj.weight"][expert])
    norm = checkpoint.tensor("model.norm.weight", torch.float32)
    assert torch.equal(norm, written["model.norm.weight"])
    assert checkpoint.has("model.layers.0.mlp.gate_proj.weight")
    assert checkpoint.has("lm_head.weight")
    assert not checkpoint.has("model.layers.0.moe.gate.weight")


def test_a_tensor_is_a_copy_in_the_wanted_type(tmp_path: Path) -> None:
    directory = write_random_checkpoint(tmp_path, seed=1, dtype=torch.bfloat16)
    checkpoint = SafetensorsCheckpoint.open(directory)
    as_stored = checkpoint.tensor("lm_head.weight", torch.bfloat16)
    widened = checkpoint.tensor("lm_head.weight", torch.float32)
    assert widened.dtype == torch.float32
    assert torch.equal(widened, as_stored.float())
    widened.zero_()
    checkpoint.release()
    assert torch.equal(checkpoint.tensor("lm_head.weight", torch.bfloat16), as_stored)


def shard_paths(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.safetensors"))


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    directory = write_random_checkpoint(tmp_path, seed=1, num_shards=3)
    lost = shard_paths(directory)[1]
    lost.unlink()
    with pytest.raises(CheckpointError, match=f"{lost.name}: No such file.* download it again"):
        SafetensorsCheckpoint.open(directory)


@pytest.mark.parametrize("keep", [0, 4, 1000, -100])
@pytest.mark.parametrize("num_shards", [1, 3])
def test_a_truncated_file_is_named(tmp_path: Path, num_shards: int, keep: int) -> None:
    directory = write_random_checkpoint(tmp_path, seed=1, num_shards=num_shards)
    cut = shard_paths(directory)[-1]
    whole = cut.read_bytes()
    cut.write_bytes(whole[:keep])
    with pytest.raises(CheckpointError, match=f"{cut.name} is truncated or not a safetensors file"):
        SafetensorsCheckpoint.open(directory)


def test_a_shard_without_its_tensor_is_named(tmp_path: Path) -> None:
    directory = write_random_checkpoint(tmp_path, seed=1, num_shards=3)
    path = shard_paths(directory)[0]
    tensors = load_file(path)
    name = sorted(tensors)[0]
    del tensors[name]
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=f"{path.name} lacks tensor {name!r}"):
        SafetensorsCheckpoint.open(directory)


def test_directories_without_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a directory"):
        SafetensorsCheckpoint.open(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="has 0 safetensors files"):
        SafetensorsCheckpoint.open(tmp_path)


def relist(directory: Path, change: Callable[[dict[str, str]], None]) -> None:
    """Edit the index's weight_map."""
    document = json.loads((directory / INDEX_NAME).read_text())
    change(document["weight_map"])
    (directory / INDEX_NAME).write_text(json.dumps(document))


def test_tensors_that_the_index_leaves_out_count(tmp_path: Path) -> None:
    directory = write_random_checkpoint(tmp_path, seed=1, num_shards=3)
    whole = set(SafetensorsCheckpoint.open(directory).stored)

    def drop_mtp(weight_map: dict[str, str]) -> None:
        for name in [name for name in weight_map if name.startswith("model.layers.6.")]:
            del weight_map[name]

    relist(directory, drop_mtp)
    checkpoint = SafetensorsCheckpoint.open(directory)
    assert set(checkpoint.stored) == whole
    assert checkpoint.tensor("model.layers.6.eh_proj.weight", torch.float32).shape == (64, 128)


def test_a_file_of_its_own_beside_the_index_counts(tmp_path: Path) -> None:
    directory = write_random_checkpoint(tmp_path, seed=1, num_shards=2)
    whole = set(SafetensorsCheckpoint.open(directory).stored)
    mtp: dict[str, torch.Tensor] = {}
    for path in shard_paths(directory):
        tensors = load_file(path)
        mtp |= {name: tensors.pop(name) for name in list(tensors) if name.startswith("model.layers.6.")}
        save_file(tensors, path)
    save_file(mtp, directory / "model-mtp.safetensors")
    relist(directory, lambda weight_map: [weight_map.pop(name) for name in mtp] and None)
    assert set(SafetensorsCheckpoint.open(directory).stored) == whole


def test_another_copy_beside_the_index_is_left_alone(tmp_path: Path) -> None:
    directory = write_random_checkpoint(tmp_path, seed=1, num_shards=2)
    expected = SafetensorsCheckpoint.open(directory).tensor("lm_head.weight", torch.float32)
    save_file(
        {"lm_head.weight": torch.zeros(2), "more": torch.zeros(2)}, directory / "consolidated.safetensors"
    )
    checkpoint = SafetensorsCheckpoint.open(directory)
    assert torch.equal(checkpoint.tensor("lm_head.weight", torch.float32), expected)
    assert not checkpoint.has("more")


def test_a_tensor_in_two_shards_is_named(tmp_path: Path) -> None:
    directory = write_random_checkpoint(tmp_path, seed=1, num_shards=2)
    first, second = shard_paths(directory)
    name = sorted(load_file(first))[0]
    save_file(load_file(second) | {name: torch.zeros(1)}, second)
    with pytest.raises(CheckpointError, match=f"{second.name} has tensor {name!r}, and so has {first.name}"):
        SafetensorsCheckpoint.open(directory)


@pytest.mark.parametrize("name", [INDEX_NAME, "model-00001-of-00002.safetensors"])
def test_a_pipe_in_place_of_a_file_is_not_waited_for(tmp_path: Path, name: str) -> None:
    directory = write_random_checkpoint(tmp_path, seed=1, num_shards=2)
    (directory / name).unlink()
    os.mkfifo(directory / name)
    with pytest.raises(CheckpointError, match=f"{name}: it is a pipe"):
        SafetensorsCheckpoint.open(directory)


def test_an_index_nested_deeply_is_named(tmp_path: Path) -> None:
    (tmp_path / INDEX_NAME).write_text('{"weight_map":' + "[" * 100_000)
    with pytest.raises(CheckpointError, match=f"{INDEX_NAME}: nested more than"):
        SafetensorsCheckpoint.open(tmp_path)


@pytest.mark.parametrize(
    "index",
    [
        "{",
        "{}",
        '{"weight_map": []}',
        '{"weight_map": {"a": 1}}',
        '{"weight_map": {"a": "../b"}}',
        '{"weight_map": {"a": ""}}',
        "[]",
    ],
)
def test_a_broken_index_is_named(tmp_path: Path, index: str) -> None:
    (tmp_path / INDEX_NAME).write_text(index)
    with pytest.raises(CheckpointError, match=INDEX_NAME):
        SafetensorsCheckpoint.open(tmp_path)


def test_an_expert_of_another_shape_is_refused(tmp_path: Path) -> None:
    directory = write_random_checkpoint(tmp_path, seed=1)
    document = json.loads((directory / "config.json").read_text())
    document["moe_intermediate_size"] = 48
    (directory / "config.json").write_text(json.dumps(document))
    config = Step35Config.load(directory)
    with pytest.raises(
        CheckpointError, match=r"moe\.gate_proj\.weight has shape \[16, 32, 64\], expected \[16, 48, 64\]"
    ):
        SafetensorsCheckpoint.open(directory).expert(2, 0, config)


def test_a_missing_expert_is_named(tmp_path: Path) -> None:
    directory = write_random_checkpoint(tmp_path, seed=1, expert_names="experts")
    path = directory / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.3.moe.experts.7.up_proj.weight"]
    save_file(tensors, path)
    checkpoint, config = SafetensorsCheckpoint.open(directory), Step35Config.load(directory)
    checkpoint.expert(3, 6, config)
    with pytest.raises(CheckpointError, match="no up_proj of expert 7 of layer 3"):
        checkpoint.expert(3, 7, config)
    with pytest.raises(CheckpointError, match=r"no tensor model\.nothing"):
        checkpoint.tensor("model.nothing", torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_checkpoint_tells_the_form_its_experts_are_stored_in(tmp_path: Path, dtype: torch.dtype) -> None:
    directory = write_random_checkpoint(tmp_path, seed=1, dtype=dtype)
    checkpoint, config = SafetensorsCheckpoint.open(directory), Step35Config.load(directory)
    form = FORMATS[str(dtype).removeprefix("torch.")]
    assert checkpoint.expert_format(2, config) == ExpertFormat.of(form)
    gate, up, down = checkpoint.expert(3, 1, config)
    assert gate.form == up.form == down.form == form
    assert gate.data.dtype == dtype
    assert (gate.rows, gate.columns) == (up.rows, up.columns) == (down.columns, down.rows) == (32, 64)
    assert down.name == "model.layers.3.moe.down_proj.weight"


def fp8_directory(directory: Path, changed: dict[str, torch.Tensor | None]) -> Path:
    """A published directory with FP8 experts of 160 x 192 in layer 2; `changed`: tensors, None: left out."""
    write_random_checkpoint(
        directory, seed=3, num_layers=3, moe_layers=(2,), hidden_size=192, moe_intermediate_size=160
    )
    tensors = load_file(experts_in_fp8(directory) / "model.safetensors")
    for name, tensor in changed.items():
        tensors.pop(name, None)
        if tensor is not None:
            tensors[name] = tensor
    save_file(tensors, directory / "model.safetensors")
    return directory


@pytest.mark.parametrize("layout", ["stacked", "experts", "numbered"])
def test_fp8_experts_are_weights_times_the_scale_of_their_square(tmp_path: Path, layout: str) -> None:
    fp8_directory(tmp_path, {})
    tensors = load_file(tmp_path / "model.safetensors")
    if layout != "stacked":
        infix = "experts." if layout == "experts" else ""
        for name in [name for name in tensors if "_proj.weight" in name and ".moe." in name]:
            for expert, tensor in enumerate(tensors.pop(name)):
                tensors[name.replace(".moe.", f".moe.{infix}{expert}.")] = tensor.clone()
        save_file(tensors, tmp_path / "model.safetensors")
    config = Step35Config.load(tmp_path)
    checkpoint = SafetensorsCheckpoint.open(tmp_path)
    assert not any("scale" in name for name in checkpoint.stored)
    assert checkpoint.expert_format(2, config) == ExpertFormat.of(FP8_E4M3)
    _, _, down = checkpoint.expert(2, 3, config)
    assert (down.rows, down.columns) == tuple(down.data.shape) == (192, 160)
    assert down.data.dtype is torch.uint8
    assert down.scales is not None
    assert (tuple(down.scales.shape), down.scales.dtype) == ((2, 2), torch.float32)
    weights = down.data.view(torch.float8_e4m3fn).float()
    for row, column in ((0, 0), (127, 127), (128, 128), (191, 159), (5, 159)):
        expected = weights[row, column] * down.scales[row // 128, column // 128]
        assert float32_rows(down, torch.tensor([row]))[0, column] == expected
    if layout == "stacked":
        whole = checkpoint.tensor("model.layers.2.moe.down_proj.weight", torch.float32)
        assert torch.equal(whole[3], float32_matrix(down))


NAME = "model.layers.2.moe.up_proj.weight_scale_inv"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({NAME: None}, rf"is FP8 and has no scales; expected a tensor {NAME} of shape \[16, 2, 2\]"),
        ({NAME: torch.ones(16, 2, 1)}, r"is F32 of shape \[16, 2, 1\], expected F32 of \[16, 2, 2\]"),
        ({NAME: torch.ones(16, 2, 2).bfloat16()}, r"is BF16 of shape .*, expected F32"),
        ({f"{NAME[:-10]}_scale_2": torch.ones(8)}, "belongs to weights in NVFP4; expected float32"),
        ({NAME.replace("scale_inv", "packed"): torch.ones(8)}, "weights in int4 of compressed-tensors"),
        ({NAME[:-10]: torch.ones(16, 160, 192, dtype=torch.uint8)}, "is stored as U8, expected float32"),
    ],
)
def test_weights_that_do_not_load_are_refused_by_name(
    tmp_path: Path, changed: dict[str, torch.Tensor | None], message: str
) -> None:
    directory = fp8_directory(tmp_path, changed)
    config = Step35Config.load(directory)
    with pytest.raises(CheckpointError, match=message) as caught:
        SafetensorsCheckpoint.open(directory).expert(2, 0, config)
    assert "\n" not in str(caught.value)
    assert str(directory) in str(caught.value)


def test_a_whole_matrix_comes_without_a_copy(tmp_path: Path) -> None:
    directory = write_random_checkpoint(tmp_path, seed=1, dtype=torch.bfloat16)
    checkpoint = SafetensorsCheckpoint.open(directory)
    head = checkpoint.matrix("lm_head.weight")
    assert head.data.data_ptr() == checkpoint.matrix("lm_head.weight").data.data_ptr()
    rows = torch.tensor([5, 0, 5])
    assert torch.equal(float32_rows(head, rows), checkpoint.tensor("lm_head.weight", torch.float32)[rows])
    with pytest.raises(CheckpointError, match="expected a matrix"):
        checkpoint.matrix("model.norm.weight")


def test_a_file_that_changed_since_it_was_opened_is_refused(tmp_path: Path) -> None:
    directory = write_random_checkpoint(tmp_path, seed=1)
    checkpoint = SafetensorsCheckpoint.open(directory)
    checkpoint.check_unchanged()
    shutil.copyfile(directory / "model.safetensors", directory / "other")
    (directory / "other").replace(directory / "model.safetensors")
    for ask in (checkpoint.check_unchanged, lambda: checkpoint.tensor("lm_head.weight", torch.float32)):
        with pytest.raises(CheckpointError, match=r"another file took its place .* nobody changes a model"):
            ask()


def test_a_directory_of_an_impossible_name_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a directory"):
        SafetensorsCheckpoint.open(tmp_path / ("x" * 300))


def test_a_nested_tensor_goes_by_its_plain_name_and_gives_way_to_a_plain_one(tmp_path: Path) -> None:
    names = ("model.norm.weight", "model.language_model.norm.weight", "model.language_model.lm_head.weight")
    save_file(
        {name: torch.full((1,), float(i)) for i, name in enumerate(names)}, tmp_path / "model.safetensors"
    )
    checkpoint = SafetensorsCheckpoint.open(tmp_path)
    assert checkpoint.stored == {"model.norm.weight": names[0], "lm_head.weight": names[2]}
    assert checkpoint.tensor("model.norm.weight", torch.float32) == 0
    assert checkpoint.tensor("lm_head.weight", torch.float32) == 2


class CountedName(str):
    """A tensor's name that counts how often it is held against another."""

    __slots__ = ()
    compared = 0

    def __eq__(self, other: object) -> bool:
        CountedName.compared += 1
        return str.__eq__(self, other)

    __hash__ = str.__hash__


class Fp8Experts:
    """A file that says that it has these matrices in FP8, and a scale for each 128 x 128."""

    path = Path("m", "model.safetensors")

    def type_of(self, name: str) -> str:
        return "F32" if name.endswith("_scale_inv") else "F8_E4M3"

    def shape_of(self, name: str) -> tuple[int, int]:
        return (1, 2) if name.endswith("_scale_inv") else (128, 256)


def test_no_tensor_of_many_is_searched_among_all(tmp_path: Path) -> None:
    config = Step35Config.load(write_random_checkpoint(tmp_path, seed=1))
    prefix, num_experts = "model.layers.2.moe.experts", 400
    weights = [f"{prefix}.{expert}.up_proj.weight" for expert in range(num_experts)]
    file = cast(Shard, Fp8Experts())
    shards = {CountedName(name): file for weight in weights for name in (weight, f"{weight}_scale_inv")}
    CountedName.compared = 0
    contents = directory_contents(shards, config)
    check_scales(Path("m"), shards)
    assert [tensor.num_bytes for tensor in contents.tensors] == [128 * 256 + 2 * 4] * num_experts
    assert len(contents.stored) == num_experts
    assert CountedName.compared < 30 * len(shards)


def test_a_file_for_which_no_addresses_are_left_is_told_so(forks: Forks) -> None:
    script = (
        "import psutil, resource\n"
        "from workers.formats.open_model import open_model\n"
        f"config, checkpoint = open_model({str(MODEL)!r})\n"
        "resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + (8 << 20),) * 2)\n"
        "checkpoint.expert(config.moe_layers[0], 0, config)\n"
    )
    done = subprocess.run(forks.command(["-c", script]), capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "CheckpointError: " in done.stderr
    assert "it cannot be mapped" in done.stderr
    assert "ulimit -v" in done.stderr
