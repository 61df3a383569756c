"""Newer and older spellings of config.json give transformers' own numbers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from placement.errors import CheckpointError
from tests.orchestrator.heads import hidden_states, load_model
from tests.orchestrator.step35_oracle import Oracle
from tests.tiny_checkpoint import write_random_checkpoint

# One process imports transformers.
pytestmark = pytest.mark.xdist_group("transformers")

TOKENS = list(range(5, 105))
# So strong that rows without it are far off.
SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(tmp_path_factory.mktemp("published"), seed=71, rope_scaling=SCALING)


@pytest.fixture(scope="module")
def expected(published: Path) -> torch.Tensor:
    return Oracle(published).logits(TOKENS)


def logits(model_dir: Path) -> torch.Tensor:
    model = load_model(model_dir)
    return model.logits(hidden_states(model, TOKENS))


def copy_with(published: Path, directory: Path, change: dict[str, Any]) -> Path:
    """The checkpoint with fields of config.json replaced, or left out where None."""
    shutil.copytree(published, directory)
    document = json.loads((directory / "config.json").read_text()) | change
    kept = {name: value for name, value in document.items() if value is not None}
    (directory / "config.json").write_text(json.dumps(kept))
    return directory


def test_what_transformers_saves_loads(published: Path, expected: torch.Tensor, tmp_path: Path) -> None:
    from transformers.models.step3p7.configuration_step3p7 import Step3p7TextConfig

    fields = json.loads((published / "config.json").read_text())
    fields["num_key_value_heads"] = fields.pop("num_attention_groups")
    fields["n_routed_experts"] = fields.pop("moe_num_experts")
    fields["num_experts_per_tok"] = fields.pop("moe_top_k")
    shutil.copytree(published, tmp_path / "saved")
    Step3p7TextConfig(**fields).save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert set(saved["rope_parameters"]) == {"full_attention", "sliding_attention"}
    assert (logits(tmp_path / "saved") - expected).abs().max() < 1e-4
    assert len(load_model(tmp_path / "saved").weights.mtp) == 3


def test_a_flat_rope_parameters_is_the_legacy_rope_scaling(
    published: Path, expected: torch.Tensor, tmp_path: Path
) -> None:
    flat = copy_with(published, tmp_path / "flat", {"rope_scaling": None, "rope_parameters": SCALING})
    without = copy_with(published, tmp_path / "without", {"rope_scaling": None})
    assert (logits(flat) - expected).abs().max() < 1e-4
    assert (logits(without) - expected).abs().max() > 0.1


def test_tensors_count_where_their_flag_is_absent(
    published: Path, expected: torch.Tensor, tmp_path: Path
) -> None:
    change = {"use_moe_router_bias": None, "use_head_wise_attn_gate": None}
    silent = copy_with(published, tmp_path / "silent", change)
    assert (logits(silent) - expected).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("flag", "tensor"),
    [
        ("use_moe_router_bias", r"model\.layers\.2\.moe\.router_bias"),
        ("use_head_wise_attn_gate", r"model\.layers\.0\.self_attn\.g_proj"),
    ],
)
def test_a_flag_against_its_tensors_is_refused(
    published: Path, tmp_path: Path, flag: str, tensor: str
) -> None:
    with pytest.raises(CheckpointError, match=rf"{flag} is false, but there is a tensor {tensor}"):
        load_model(copy_with(published, tmp_path / "off", {flag: False}))


def test_tied_embeddings_against_a_matrix_of_its_own_are_refused(published: Path, tmp_path: Path) -> None:
    tied = copy_with(published, tmp_path / "tied", {"tie_word_embeddings": True})
    with pytest.raises(CheckpointError, match=r"tie_word_embeddings is true, but lm_head\.weight differs"):
        load_model(tied)
    tensors = load_file(tied / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, tied / "model.safetensors")
    model = load_model(tied)
    assert model.weights.lm_head.each[0].data is model.weights.embedding.data
