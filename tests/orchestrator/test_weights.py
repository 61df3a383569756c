"""Every published way of naming tensors gives the same model; wrong files are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.random_gguf import SMALL, FileTypes, write_random_gguf
from orchestrator.generate import GenerationParams
from orchestrator.model.moe import MoeWeights
from orchestrator.model.weights import HeadWeights, load_head_weights
from orchestrator.run_memory import head_bytes
from placement.errors import CheckpointError, InputError, ModelFilesFailed
from placement.weight_format import BFLOAT16, ExpertFormat
from tests.orchestrator.heads import generate_with_hidden, load_model
from tests.tiny_checkpoint import write_random_checkpoint
from workers.formats.contents import Part, model_contents
from workers.formats.open_model import open_model
from workers.formats.safetensors import SafetensorsCheckpoint

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]


def run(model_dir: Path, dtype: torch.dtype = torch.float32) -> tuple[tuple[int, ...], torch.Tensor]:
    params = GenerationParams(max_tokens=6, mtp=3, ignore_eos=True)
    result, rows = generate_with_hidden(load_model(model_dir, dtype), PROMPT, params)
    return result.token_ids, rows


@pytest.mark.parametrize(
    "variant",
    [
        {"num_shards": 3},
        {"expert_names": "experts"},
        {"expert_names": "numbered"},
        {"trunk_prefix": "model.language_model."},
        {"mtp_head": "transformer.shared_head.head"},
        {"mtp_head": "shared_head.output"},
        {"mtp_head": "shared_head.head"},
        {"model_type": "step3p7"},
    ],
    ids=str,
)
def test_every_published_form_is_the_same_model(variant: dict[str, Any], tmp_path: Path) -> None:
    plain = write_random_checkpoint(tmp_path / "plain", seed=41)
    other = write_random_checkpoint(tmp_path / "other", seed=41, **variant)
    expected_ids, expected_rows = run(plain)
    ids, rows = run(other)
    assert ids == expected_ids
    assert torch.equal(rows, expected_rows)


def test_bfloat16_weights_widen_exactly(tmp_path: Path) -> None:
    stored = write_random_checkpoint(tmp_path / "bf16", seed=42, dtype=torch.bfloat16)
    widened = with_dtype(stored, tmp_path / "f32", torch.float32)
    for dtype in (torch.float32, torch.bfloat16):
        ids, rows = run(stored, dtype)
        expected_ids, expected_rows = run(widened, dtype)
        assert ids == expected_ids
        assert torch.equal(rows, expected_rows)


def with_dtype(stored: Path, directory: Path, dtype: torch.dtype) -> Path:
    """The same model in another dtype."""
    directory.mkdir()
    (directory / "config.json").write_bytes((stored / "config.json").read_bytes())
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(stored / "model.safetensors").items()}
    save_file(tensors, directory / "model.safetensors")
    return directory


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_float16_weights_keep_all_their_bits_where_they_lie(tmp_path: Path, dtype: torch.dtype) -> None:
    """As a GGUF file's do; the plan calls their experts bfloat16."""
    single = write_random_checkpoint(tmp_path / "f32", seed=44)
    half = with_dtype(single, tmp_path / "f16", torch.float16)
    config, checkpoint = open_model(half)
    weights = load_head_weights(checkpoint, config, dtype)
    forms = {matrix.form.name for matrix in weights.trunk_matrices}
    assert forms == {"float16", "float32"}
    assert sum(matrix.form.name == "float32" for matrix in weights.trunk_matrices) == len(config.moe_layers)
    name = str(dtype).removeprefix("torch.")
    contents = model_contents(half)
    assert head_bytes(contents, name).trunk == sum(
        t.num_bytes for t in contents.tensors if t.part not in (Part.EXPERTS, Part.MTP)
    )
    rounded = with_dtype(half, tmp_path / "bf16", torch.bfloat16)
    assert not torch.equal(run(half, dtype)[1][: len(PROMPT)], run(rounded, dtype)[1][: len(PROMPT)])


@pytest.mark.parametrize("form", ["float16", "float32"])
def test_rows_are_rounded_as_a_plan_for_bfloat16_sends_them(tmp_path: Path, form: str) -> None:
    """Of a GGUF file too: what is computed on the head has the bits of what is sent."""
    types = FileTypes(((form, form, form),), form, form, form)
    config, checkpoint = open_model(write_random_gguf(tmp_path / "m.gguf", SMALL, types))
    planned = dict.fromkeys(config.moe_layers, ExpertFormat.of(BFLOAT16))
    for forms, rounded in ((None, form == "float16"), (planned, True)):
        weights = load_head_weights(checkpoint, config, torch.bfloat16, forms=forms)
        assert {w.ffn.rows_in_bfloat16 for w in weights.layers if isinstance(w.ffn, MoeWeights)} == {rounded}


def test_a_float32_run_and_a_bfloat16_run_differ_by_rounding_alone(tmp_path: Path) -> None:
    stored = write_random_checkpoint(tmp_path, seed=43, dtype=torch.bfloat16)
    exact, rounded = run(stored)[1][: len(PROMPT)], run(stored, torch.bfloat16)[1][: len(PROMPT)]
    error = (exact - rounded).norm() / exact.norm()
    assert 0 < error < 0.05


def load_weights(model_dir: Path) -> HeadWeights:
    """What a run with drafts loads."""
    config, checkpoint = open_model(model_dir)
    return load_head_weights(checkpoint, config, torch.float32)


def edit(model_dir: Path, change: Any) -> None:
    tensors = load_file(model_dir / "model.safetensors")
    change(tensors)
    save_file(tensors, model_dir / "model.safetensors")


@pytest.mark.parametrize(
    "name",
    [
        "model.embed_tokens.weight",
        "model.layers.1.self_attn.g_proj.weight",
        "model.layers.3.moe.router_bias",
        "model.layers.7.transformer.shared_head.output.weight",
    ],
)
def test_a_missing_tensor_is_named_with_its_shape(name: str, tmp_path: Path) -> None:
    model_dir = write_random_checkpoint(tmp_path, seed=44)
    edit(model_dir, lambda tensors: tensors.pop(name))
    with pytest.raises(CheckpointError, match=rf"{name}.*shape \["):
        load_weights(model_dir)


def test_a_tensor_of_another_shape_is_named_with_both(tmp_path: Path) -> None:
    model_dir = write_random_checkpoint(tmp_path, seed=45)
    name = "model.layers.0.self_attn.k_norm.weight"
    edit(model_dir, lambda tensors: tensors.update({name: torch.zeros(8)}))
    with pytest.raises(CheckpointError, match=rf"{name} has shape \[8\], expected \[16\]"):
        load_model(model_dir)


@pytest.mark.parametrize("trunk_prefix", ["model.", "model.language_model."])
def test_a_tensor_that_nobody_reads_is_refused(tmp_path: Path, trunk_prefix: str) -> None:
    model_dir = write_random_checkpoint(tmp_path, seed=45, trunk_prefix=trunk_prefix)
    harmless = {
        f"{trunk_prefix}layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4),
        "model.vision_model.conv1.weight": torch.zeros(4),
    }
    edit(model_dir, lambda tensors: tensors.update(harmless))
    load_model(model_dir)
    name = f"{trunk_prefix}layers.3.self_attn.q_proj.bias"
    edit(model_dir, lambda tensors: tensors.update({name: torch.zeros(96)}))
    with pytest.raises(
        CheckpointError, match=rf"tensor '{name}' is none that a model of this architecture has"
    ):
        load_model(model_dir)


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.3.mlp.up_proj.weight",
        "model.layers.3.share_expert.1.gate_proj.weight",
        "model.layers.3.moe.share_expert.down_proj.weight",
        "model.layers.0.moe.gate_proj.weight",
    ],
)
def test_an_ffn_that_nobody_reads_is_refused(tmp_path: Path, name: str) -> None:
    model_dir = write_random_checkpoint(tmp_path, seed=45)
    edit(model_dir, lambda tensors: tensors.update({name: torch.zeros(8, 8)}))
    with pytest.raises(CheckpointError, match=rf"tensor '{name}' is none that a model"):
        load_model(model_dir)


def test_a_checkpoint_of_the_trunk_alone_runs_without_drafts(tmp_path: Path) -> None:
    model_dir = write_random_checkpoint(tmp_path, seed=46)
    params = GenerationParams(max_tokens=5, ignore_eos=True)
    expected = generate_with_hidden(load_model(model_dir), PROMPT, params)[0].token_ids

    def drop_mtp(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if name.startswith(("model.layers.6", "model.layers.7"))]:
            del tensors[name]
        for name in [name for name in tensors if name.startswith("model.layers.8")]:
            del tensors[name]

    edit(model_dir, drop_mtp)
    trunk = load_model(model_dir)
    assert generate_with_hidden(trunk, PROMPT, params)[0].token_ids == expected
    with pytest.raises(InputError, match="has 0 MTP layers"):
        generate_with_hidden(trunk, PROMPT, GenerationParams(mtp=1))
    contents = model_contents(model_dir)
    contents.check_drafts(0)
    with pytest.raises(InputError, match=r"have no tensors of the MTP layers .* \(model\.layers\.6\.…"):
        contents.check_drafts(1)


def test_more_drafts_than_announced_are_refused_and_the_files_consulted(tmp_path: Path) -> None:
    model_dir = write_random_checkpoint(tmp_path, seed=46)
    contents = model_contents(model_dir)
    contents.check_drafts(3)
    with pytest.raises(InputError, match=r"announces 3 MTP layers .* expected 0 to 3$"):
        contents.check_drafts(4)
    document = json.loads((model_dir / "config.json").read_text())
    (model_dir / "config.json").write_text(json.dumps(document | {"num_nextn_predict_layers": 0}))
    with pytest.raises(InputError, match="the files have 3, so set num_nextn_predict_layers to 3"):
        model_contents(model_dir).check_drafts(1)


def test_an_mtp_layer_that_is_there_in_part_is_named(tmp_path: Path) -> None:
    model_dir = write_random_checkpoint(tmp_path, seed=46, num_mtp_layers=1)
    edit(model_dir, lambda tensors: tensors.pop("model.layers.6.eh_proj.weight"))
    with pytest.raises(CheckpointError, match=r"eh_proj\.weight is missing.* go without drafts"):
        load_weights(model_dir)
    # Without drafts nobody needs it.
    assert load_model(model_dir).weights.mtp == ()


def test_tied_embeddings_need_no_output_matrix(tmp_path: Path) -> None:
    model_dir = write_random_checkpoint(tmp_path, seed=47)
    config = json.loads((model_dir / "config.json").read_text())
    (model_dir / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    edit(model_dir, lambda tensors: tensors.pop("lm_head.weight"))
    model = load_model(model_dir)
    assert model.weights.lm_head.each[0].data is model.weights.embedding.data


def test_files_that_fail_are_not_taken_for_those_of_the_trunk_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_dir = write_random_checkpoint(tmp_path, seed=46, num_mtp_layers=1)
    read = SafetensorsCheckpoint.tensor

    def failing(checkpoint: SafetensorsCheckpoint, name: str, dtype: torch.dtype) -> torch.Tensor:
        if name.startswith("model.layers.6."):
            raise ModelFilesFailed("another file took its place")
        return read(checkpoint, name, dtype)

    monkeypatch.setattr(SafetensorsCheckpoint, "tensor", failing)
    with pytest.raises(ModelFilesFailed, match=r"^another file took its place$"):
        load_model(model_dir)
