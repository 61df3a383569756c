"""What a model's files lack is told from their headers, before a run reads them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from orchestrator.model.weights import load_head_weights
from placement.errors import CheckpointError
from placement.weight_format import FP8_E4M3, ExpertFormat
from tests.tiny_checkpoint import ExpertNames, write_random_checkpoint
from tests.workers.formats.fp8_files import experts_in_fp8
from workers.formats.contents import Part, model_contents
from workers.formats.open_model import open_model
from workers.formats.safetensors import SafetensorsCheckpoint
from workers.model_config import Step35Config


def tiny(directory: Path, expert_names: ExpertNames = "stacked") -> Path:
    return write_random_checkpoint(
        directory,
        seed=1,
        num_layers=2,
        moe_layers=(1,),
        num_mtp_layers=1,
        num_experts=4,
        top_k=2,
        expert_names=expert_names,
    )


def refusal_of_reading(directory: Path) -> str | None:
    """Of the head first, then of each expert, without a look at what is there."""
    try:
        config, checkpoint = Step35Config.load(directory), SafetensorsCheckpoint.open(directory)
        load_head_weights(checkpoint, config, torch.float32)
        for layer in config.moe_layers:
            for expert in range(config.moe_num_experts):
                checkpoint.expert(layer, expert, config)
    except CheckpointError as error:
        return str(error)
    return None


def refusal(directory: Path) -> str | None:
    """Of a run with a draft, as it opens the model; headers alone tell the same."""
    try:
        open_model(directory).contents.check_drafts(1)
        opening = None
    except CheckpointError as error:
        opening = str(error)
    try:
        contents = model_contents(directory)
        contents.check()
        contents.check_drafts(1)
        headers = None
    except CheckpointError as error:
        headers = str(error)
    assert opening == headers
    return headers


@pytest.mark.parametrize("expert_names", ["stacked", "experts", "numbered"])
def test_each_tensor_that_reading_misses_is_missed(tmp_path: Path, expert_names: ExpertNames) -> None:
    directory = tiny(tmp_path / "m", expert_names)
    whole = load_file(directory / "model.safetensors")
    assert refusal(directory) is refusal_of_reading(directory) is None
    needed = 0
    for name in whole:
        rest = {other: tensor for other, tensor in whole.items() if other != name}
        save_file(rest, directory / "model.safetensors")
        refused = refusal(directory)
        # Reading takes what there is of those; the configuration may announce them.
        if refused is None or not name.endswith(("g_proj.weight", "router_bias")):
            assert (refusal_of_reading(directory) is None) == (refused is None), name
        needed += refused is not None
        if refused is not None and "experts" not in name:
            assert name.rpartition(".")[0] in refused
    # All but the gates and the router's bias, which the files may announce by having them.
    assert needed >= len(whole) - 2 * 3


def test_each_tensor_of_another_shape_is_refused(tmp_path: Path) -> None:
    directory = tiny(tmp_path / "m")
    whole = load_file(directory / "model.safetensors")
    for name, tensor in whole.items():
        save_file(whole | {name: tensor[:-1].clone()}, directory / "model.safetensors")
        assert f"model.safetensors: tensor {name} has shape" in str(refusal(directory))


def test_a_tensor_that_nobody_reads_is_refused(tmp_path: Path) -> None:
    directory = tiny(tmp_path / "m")
    whole = load_file(directory / "model.safetensors")
    save_file(whole | {"model.layers.0.self_attn.sinks": torch.ones(4)}, directory / "model.safetensors")
    assert "is none that a model of this architecture has" in str(refusal(directory))


@pytest.mark.parametrize("flag", ["use_head_wise_attn_gate", "use_moe_router_bias"])
def test_a_flag_that_contradicts_the_files_is_refused(tmp_path: Path, flag: str) -> None:
    directory = tiny(tmp_path / "m")
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {flag: False}))
    assert f"config.json says {flag} is false" in str(refusal(directory))


def test_fp8_weights_without_scales_are_refused(tmp_path: Path) -> None:
    directory = experts_in_fp8(tiny(tmp_path / "m"))
    whole = load_file(directory / "model.safetensors")
    assert refusal(directory) is refusal_of_reading(directory) is None
    scales = "model.layers.1.moe.down_proj.weight_scale_inv"
    for changed in (None, whole[scales][:-1].clone(), whole[scales].half()):
        tensors = {name: tensor for name, tensor in whole.items() if name != scales}
        save_file(
            tensors if changed is None else tensors | {scales: changed}, directory / "model.safetensors"
        )
        assert refusal_of_reading(directory) is not None
        assert "scale" in str(refusal(directory))


def test_routers_are_told_from_norms_and_planned_as_runs_keep_them(tmp_path: Path) -> None:
    directory = write_random_checkpoint(
        tmp_path / "m", seed=1, num_layers=3, moe_layers=(1, 2), num_mtp_layers=0, dtype=torch.bfloat16
    )
    contents = model_contents(experts_in_fp8(directory))
    routers = [tensor for tensor in contents.tensors if tensor.part is Part.ROUTERS]
    assert {(t.matrix, t.layer) for t in routers} == {(m, n) for m in ("router", "bias") for n in (1, 2)}
    assert all(t.form == "bfloat16" for t in routers if t.matrix == "router")
    forms = contents.head_forms
    assert (forms.router.form, forms.router.bits) == ("float32", 32)
    assert (forms.attention.form, forms.output.form) == ("bfloat16", "bfloat16")
    assert contents.expert_formats == dict.fromkeys((1, 2), ExpertFormat.of(FP8_E4M3))
