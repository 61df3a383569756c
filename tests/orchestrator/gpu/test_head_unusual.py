"""Rows that leave their grid, and weights that are no numbers, on a card as on the CPU."""

from __future__ import annotations

import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from models.tiny.gguf_file import write_gguf
from orchestrator.dispatch.dispatcher import Dispatcher
from orchestrator.generate import GenerationParams, generate
from orchestrator.model.routing_recorder import RoutingRecorder
from orchestrator.model.step35 import Step35Model
from orchestrator.session import load_local
from placement.errors import NonFiniteError
from placement.weight_format import ExpertFormat
from tests.cuda_on_cpu.card import the_card
from tests.orchestrator.gpu.heads_on_cards import on_card
from tests.orchestrator.heads import hidden_states
from tests.tiny_checkpoint import write_random_checkpoint
from workers.formats.open_model import OpenModel, open_model
from workers.gpu.tier import VramTier

PROMPT = [5, 17, 30, 2]
EVERY = {2: range(16), 3: range(16)}
HALF = {2: range(0, 16, 2), 3: range(8)}


def checkpoint(folder: Path) -> Path:
    return write_random_checkpoint(
        folder, seed=4, vocab_size=40, num_layers=4, num_mtp_layers=1, moe_layers=(2, 3)
    )


def tier(model: OpenModel, head: Step35Model, experts: dict[int, range]) -> VramTier:
    assert isinstance(head.experts, Dispatcher)
    forms = {layer.index: ExpertFormat.of_name(layer.form) for layer in head.experts.view.plan.layers}
    device = the_card().device()
    return VramTier.load(model.checkpoint, model.config, experts, formats=forms, device=device)


@pytest.mark.parametrize("experts", [EVERY, HALF, {}])
def test_rows_that_leave_their_grid_have_the_cpus_bits(tmp_path: Path, experts: dict[int, range]) -> None:
    directory = checkpoint(tmp_path / "m")
    (file,) = directory.glob("*.safetensors")
    tensors = load_file(file)
    tensors["model.layers.2.moe.down_proj.weight"] *= 20_000
    save_file(tensors, file)
    model = open_model(directory)
    cpu = load_local(model, torch.float32)
    assert isinstance(cpu.experts, Dispatcher)
    expected = hidden_states(cpu, PROMPT)
    assert cpu.experts.usage.coarsened_rows > 0
    held = tier(model, cpu, experts) if experts else None
    card = on_card(cpu, cpu.experts.view.plan, the_card().device(), experts=held)
    recorders = []
    for head in (cpu, card):
        head.recorder = RoutingRecorder((2, 3), 16, 4)
        assert torch.equal(hidden_states(head, PROMPT, 2), expected)
        recorders.append(head.recorder.trace())
    np.testing.assert_array_equal(*recorders)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("broken")
    write_gguf(checkpoint(folder / "m"), folder / "m.gguf", "q8_0")
    return folder / "m.gguf"


@pytest.mark.parametrize(
    "tensor",
    [
        "token_embd.weight",
        "blk.0.ffn_down.weight",
        "blk.1.attn_k.weight",
        "blk.2.ffn_gate_exps.weight",
        "blk.3.ffn_up_shexp.weight",
        "blk.4.nextn.eh_proj.weight",
        "blk.4.ffn_up.weight",
        "output.weight",
    ],
)
def test_who_gives_numbers_that_are_not_finite_is_named_as_on_the_cpu(
    path: Path, tmp_path: Path, tensor: str
) -> None:
    wrong = tmp_path / "wrong.gguf"
    shutil.copyfile(path, wrong)
    found = next(t for t in gguf.GGUFReader(wrong, "r+").tensors if t.name == tensor)
    found.data.reshape(-1, found.data.shape[-1])[:, :2] = np.frombuffer(
        np.float16(np.nan).tobytes(), np.uint8
    )
    cpu = load_local(open_model(wrong), torch.bfloat16)
    assert isinstance(cpu.experts, Dispatcher)
    card = on_card(cpu, cpu.experts.view.plan, the_card().device())
    messages = []
    for head in (cpu, card):
        with pytest.raises(NonFiniteError) as error:
            generate(head, PROMPT, GenerationParams(3, mtp=1, ignore_eos=True))
        messages.append(str(error.value))
    assert messages[0] == messages[1]
