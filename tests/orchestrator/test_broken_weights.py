"""Weights that are no numbers end a run with one line: the file, the layer, the part, and what to do."""

from __future__ import annotations

import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest

from models.tiny.gguf_file import write_gguf
from tests.orchestrator.command_line import Potluck, says
from tests.tiny_checkpoint import write_random_checkpoint

NUM_TRUNK = 6
REMEDY = "compare their checksums with the published ones or download them again"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("broken")
    directory = write_random_checkpoint(folder / "m", seed=4, num_layers=NUM_TRUNK)
    write_gguf(directory, folder / "m.gguf", "q8_0")
    return folder / "m.gguf"


def with_broken(path: Path, copy: Path, tensor: str) -> Path:
    """A copy of the file whose tensor has a scale that is NaN in each row."""
    shutil.copyfile(path, copy)
    found = next(t for t in gguf.GGUFReader(copy, "r+").tensors if t.name == tensor)
    assert found.tensor_type == gguf.GGMLQuantizationType.Q8_0
    rows = found.data.reshape(-1, found.data.shape[-1])
    rows[:, :2] = np.frombuffer(np.float16(np.nan).tobytes(), np.uint8)
    return copy


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        ("token_embd.weight", "the embedding of tokens"),
        ("blk.0.ffn_down.weight", "layer 0: its shared expert or dense FFN"),
        ("blk.1.attn_q.weight", "layer 1: its attention"),
        ("blk.1.attn_k.weight", "layer 1: its attention"),
        ("blk.4.attn_v.weight", "layer 4: its attention"),
        ("blk.4.attn_gate.weight", "layer 4: its attention"),
        ("blk.2.ffn_gate_exps.weight", "layer 2: one of its routed experts"),
        ("blk.3.ffn_down_exps.weight", "layer 3: one of its routed experts"),
        ("blk.3.ffn_up_shexp.weight", "layer 3: its shared expert or dense FFN"),
        ("blk.5.ffn_down_shexp.weight", "layer 5: its shared expert or dense FFN"),
        ("output.weight", "the output matrix"),
    ],
)
def test_the_layer_and_the_part_are_named(
    potluck: Potluck, path: Path, tmp_path: Path, tensor: str, message: str
) -> None:
    wrong = with_broken(path, tmp_path / "wrong.gguf", tensor)
    code, out, err = potluck("generate", "--model", wrong, "--token-ids", "5,17,300", "--json")
    lines = err.strip().splitlines()
    assert (code, out, len(lines)) == (1, "", 1)
    assert says(err, f"error: {wrong}: {message} … not finite … {REMEDY}"), err


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        ("blk.6.nextn.eh_proj.weight", "layer 6: its input projection"),
        ("blk.7.attn_output.weight", "layer 7: its attention"),
        ("blk.7.ffn_up.weight", "layer 7: its shared expert or dense FFN"),
        ("blk.6.nextn.shared_head_head.weight", "the output matrix"),
    ],
)
def test_drafts_alone_need_mtp_layers(
    potluck: Potluck, path: Path, tmp_path: Path, tensor: str, message: str
) -> None:
    wrong = with_broken(path, tmp_path / "wrong.gguf", tensor)
    layer = tensor.split(".")[1]
    ask = ("generate", "--model", wrong, "--token-ids", "5,17,300", "--max-tokens", 6, "--json")
    code, _, err = potluck(*ask, "--mtp", 2)
    assert code == 1
    assert says(err, f"{message} … not finite … {REMEDY}; this was in MTP layer {layer}, and --mtp 0"), err
    assert potluck(*ask)[0] == 0
