"""A published FP8 checkpoint runs as it is: the same numbers everywhere, those of weights times scales."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from orchestrator.generate import GenerationParams
from orchestrator.in_process import dispatcher_with_threads
from orchestrator.model.step35 import Step35Model
from orchestrator.session import load_local
from placement.errors import PotluckError
from tests.orchestrator.command_line import Potluck, document
from tests.orchestrator.heads import generate_with_hidden, hidden_states
from tests.orchestrator.random_plan import random_plan
from tests.tiny_checkpoint import write_random_checkpoint
from tests.workers.formats.fp8_files import dequantised, experts_in_fp8
from workers.formats.open_model import kept_forms, open_model

PROMPT = [5, 17, 300, 42, 9, 9, 120, 77]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Matrices of 160 x 192 and back: squares of 128 x 128 and what is left of them."""
    return experts_in_fp8(
        write_random_checkpoint(
            tmp_path_factory.mktemp("fp8") / "model",
            seed=4,
            num_layers=4,
            moe_layers=(1, 2, 3),
            hidden_size=192,
            moe_intermediate_size=160,
            num_experts=8,
        )
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("num_workers", "mtp"), [(0, 2), (1, 0), (2, 0), (3, 2)])
def test_numbers_do_not_depend_on_where_experts_are(
    directory: Path, dtype: str, num_workers: int, mtp: int
) -> None:
    config, checkpoint = open_model(directory)
    torch_dtype = getattr(torch, dtype)
    plan = random_plan(config.shape("fp8"), num_workers, seed=num_workers, head_holds=num_workers != 1)
    params = GenerationParams(max_tokens=8, mtp=mtp, chunk_size=3, ignore_eos=True)
    with dispatcher_with_threads(plan, checkpoint, config, torch_dtype) as dispatcher:
        model = Step35Model.load(checkpoint, config, torch_dtype, dispatcher)
        result, hidden = generate_with_hidden(model, PROMPT, params)
    alone = load_local(open_model(directory), torch_dtype)
    plain = GenerationParams(max_tokens=8, ignore_eos=True)
    expected, expected_hidden = generate_with_hidden(alone, PROMPT, plain)
    assert result.token_ids == expected.token_ids
    assert torch.equal(hidden, expected_hidden)


def test_they_are_those_of_weights_times_scales(directory: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(directory, tmp_path / "plain"))
    save_file(dequantised(load_file(directory / "model.safetensors")), other / "model.safetensors")
    found, expected = (
        hidden_states(load_local(open_model(path), torch.float32), PROMPT) for path in (directory, other)
    )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_code_that_is_no_number_ends_the_request_and_names_the_layer(
    directory: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(directory, tmp_path / "nan"))
    tensors = load_file(other / "model.safetensors")
    tensors["model.layers.2.moe.up_proj.weight"].view(torch.uint8)[:, 7, 3] = 0x7F
    save_file(tensors, other / "model.safetensors")
    with pytest.raises(PotluckError, match="layer 2"):
        hidden_states(load_local(open_model(other), torch.float32), PROMPT)


def test_a_plan_keeps_experts_as_stored(potluck: Potluck, directory: Path, tmp_path: Path) -> None:
    cluster = tmp_path / "cluster.yaml"
    device = "{name: a, kind: ram, memory_bytes: 20MB, bandwidth_gbytes_per_s: 10, ffn_gflops: 50}"
    cluster.write_text(f"head: study\nnodes:\n  - name: study\n    devices:\n      - {device}\nlinks: []\n")
    out = tmp_path / "plan.json"
    planning = ("plan", cluster, "--model", directory, "--context", 64, "--policy", "uniform")
    planned = document(potluck(*planning, "--out", out, "--json"))
    config, checkpoint = open_model(directory)
    assert {form.name for form in kept_forms(checkpoint, config, "bfloat16").values()} == {"fp8_e4m3"}
    # Three matrices of 160 x 192 bytes, with four scales each.
    assert planned["expert_bytes"] == 3 * (160 * 192 + 4 * 4)
    # The head is float32 in this file.
    assert planned["workload"]["head_bits"] == 32
    run = potluck("generate", "--model", directory, "--plan", out, "--token-ids", "5,17", "--max-tokens", 2)
    assert run[0] == 0, run[2]
