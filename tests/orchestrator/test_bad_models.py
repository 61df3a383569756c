"""Model files that are none, as whoever types the command meets them: one line and exit code 2."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from models.tiny.gguf_file import write_gguf
from tests.orchestrator.command_line import Potluck, document, says
from tests.tiny_checkpoint import write_random_checkpoint
from tests.workers.formats.fp8_files import experts_in_fp8
from tests.workers.formats.gguf_files import in_parts, rewritten, trunk_and_mtp, without

NUM_TRUNK = 4
ASK = ("--token-ids", "5,17", "--max-tokens", 2, "--ignore-eos", "--json")
CLUSTER = Path(__file__).parents[2] / "cluster.yaml"
IMATRIX = Path(__file__).parents[1] / "placement" / "fixtures" / "imatrix-step35.gguf"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "m"
    return write_random_checkpoint(folder, seed=6, num_layers=NUM_TRUNK, moe_layers=(2, 3), tokenizer=True)


@pytest.fixture(scope="module")
def path(directory: Path) -> Path:
    write_gguf(directory, directory.parent / "m.gguf")
    return directory.parent / "m.gguf"


def packed(content: bytes, position: int, layout: str, *values: int) -> bytes:
    new = struct.pack(layout, *values)
    return content[:position] + new + content[position + len(new) :]


def behind(content: bytes, name: str) -> int:
    """Where what follows a key's or a tensor's name stands."""
    text = name.encode()
    return content.index(struct.pack("<Q", len(text)) + text) + 8 + len(text)


def of_tensor(content: bytes, name: str, field: int) -> int:
    """Where a matrix stack's first dimension (0), type (3) or offset (4) stands; the stack has three."""
    return behind(content, name) + 4 + (28 if field == 4 else 8 * field)


UP = "blk.3.ffn_up_exps.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content[:-40], "tensor … ends at byte … truncated, download it again"),
        (
            lambda content: content[:300],
            "cut off at byte 300; expected … or more: … download or copy it again",
        ),
        (lambda content: b"", "too short for a GGUF file: 0 bytes; … download or copy it again"),
        (lambda content: b"PK\3\4" + content, "not a GGUF file: expected it to begin with GGUF"),
        (
            lambda content: packed(content, 4, "<I", 1),
            "expected a little-endian GGUF of version 2 or 3, found version 1",
        ),
        (lambda content: packed(content, 8, "<Q", 1 << 62), "claims 4,611,686,018,427,387,904 tensors"),
        (
            lambda content: packed(content, 16, "<Q", 1 << 62),
            "claims 4,611,686,018,427,387,904 key-value pairs in … download or copy it again",
        ),
        (lambda content: packed(content, 24, "<Q", 1 << 62), "cut off at byte"),
        (
            lambda content: packed(content, behind(content, "tokenizer.ggml.tokens") + 8, "<Q", 1 << 40),
            "claims 1,099,511,627,776 array items",
        ),
        (
            lambda content: packed(content, of_tensor(content, UP, 4), "<Q", 1 << 40),
            f"tensor '{UP}' ends at byte … truncated",
        ),
        (
            lambda content: packed(content, of_tensor(content, UP, 4), "<Q", 1 << 63),
            f"tensor '{UP}' ends at byte … truncated",
        ),
        (
            lambda content: packed(content, of_tensor(content, UP, 2), "<Q", 15),
            f"tensor … expected byte … right behind tensor '{UP}': … download it again",
        ),
        (
            lambda content: packed(content, behind(content, UP), "<I", 8),
            f"tensor '{UP}' has 8 dimensions, expected at most 4: … download or copy it again",
        ),
        (
            lambda content: packed(content, of_tensor(content, UP, 3), "<I", 1),
            "tensor … inside tensor … download it again and compare its checksum",
        ),
        (
            lambda content: packed(content, of_tensor(content, UP, 3), "<I", 2),
            f"tensor … expected byte … right behind tensor '{UP}': … compare its checksum",
        ),
        (
            lambda content: packed(content, of_tensor(content, UP, 3), "<I", 40),
            f"tensor '{UP}' is stored as NVFP4, expected one of F32",
        ),
    ],
)
def test_a_damaged_file_is_one_line(
    potluck: Potluck, path: Path, tmp_path: Path, change: Callable[[bytes], bytes], message: str
) -> None:
    wrong = tmp_path / "wrong.gguf"
    wrong.write_bytes(change(path.read_bytes()))
    commands = (("generate", *ASK, "--model"), ("plan", CLUSTER, "--model"), ("inspect",))
    for command in ((*options, wrong) for options in commands):
        code, out, err = potluck(*command)
        assert (code, out) == (2, "")
        assert says(err, f"error: {wrong}: {message}"), err


@pytest.mark.parametrize(
    ("lost", "first"),
    [
        ((".attn_q", ".attn_k", ".attn_v", ".attn_output", ".attn_gate"), "blk.0.attn_q.weight"),
        (("_q_norm", "_k_norm", "output_norm", "_gate_inp", "exp_probs"), "output_norm.weight"),
        (("output.weight",), "output.weight"),
        (("_exps",), "blk.2.ffn_gate_exps.weight"),
    ],
)
def test_a_file_without_a_kind_of_tensors_is_one_line(
    potluck: Potluck, path: Path, tmp_path: Path, lost: tuple[str, ...], first: str
) -> None:
    names = [tensor.name for tensor in gguf.GGUFReader(path).tensors]
    gone = [name for name in names if any(part in name for part in lost)]
    less = without(path, tmp_path / "less.gguf", *gone)
    for command in (("generate", *ASK), ("plan", CLUSTER), ("whatif", CLUSTER)):
        code, out, err = potluck(*command, "--model", less)
        assert (code, out) == (2, "")
        assert says(err, f"error: {less}: tensor {first} is missing; expected it with shape ["), err


@pytest.mark.parametrize(
    ("lost", "there"),
    [
        ("blk.1.attn_gate.weight", "blk.0.attn_gate.weight"),
        ("blk.2.exp_probs_b.bias", "blk.3.exp_probs_b.bias"),
    ],
)
def test_a_tensor_that_only_some_layers_have_is_one_line(
    potluck: Potluck, path: Path, tmp_path: Path, lost: str, there: str
) -> None:
    less = without(path, tmp_path / "less.gguf", lost)
    for command in (("generate", *ASK), ("plan", CLUSTER)):
        code, out, err = potluck(*command, "--model", less)
        assert (code, out) == (2, "")
        assert says(err, f"error: {less}: tensor {lost} is missing; expected it, as there is {there}: "), err


def test_a_directory_without_embedding_and_output_is_one_line(potluck: Potluck, tmp_path: Path) -> None:
    directory = experts_in_fp8(
        write_random_checkpoint(tmp_path / "m", seed=1, num_layers=3, moe_layers=(1, 2), num_mtp_layers=0)
    )
    tensors = load_file(directory / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        del tensors[name]
    save_file(tensors, directory / "model.safetensors")
    for command in (("generate", *ASK), ("plan", CLUSTER), ("whatif", CLUSTER)):
        code, out, err = potluck(*command, "--model", directory)
        assert (code, out) == (2, "")
        assert says(err, f"error: {directory}: tensor model.embed_tokens.weight is missing; expected it"), err


def test_tensors_over_one_another_are_one_line(potluck: Potluck, path: Path, tmp_path: Path) -> None:
    content = path.read_bytes()
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    down = "blk.3.ffn_down_exps.weight"
    first = content[of_tensor(content, down, 4) :][:8]
    at = of_tensor(content, UP, 4)
    assert stored[UP].n_bytes == stored[down].n_bytes
    wrong = tmp_path / "wrong.gguf"
    for offset in (first, struct.pack("<Q", struct.unpack("<Q", first)[0] + 32)):
        wrong.write_bytes(content[:at] + offset + content[at + 8 :])
        code, out, err = potluck("generate", "--model", wrong, *ASK)
        assert (code, out) == (2, "")
        assert says(err, f"error: {wrong}: tensor … begins at byte … inside tensor … download it again"), err


def test_another_model_and_a_number_of_experts_that_is_not_the_tensors_are_one_line(
    potluck: Potluck, path: Path, tmp_path: Path
) -> None:
    code, _, err = potluck("generate", "--model", IMATRIX, *ASK)
    assert code == 2
    assert says(err, f"error: {IMATRIX}: general.architecture is … expected 'step35'"), err
    for changed, message in (
        ({"general__architecture": "llama"}, "general.architecture is 'llama', expected 'step35'"),
        ({"expert_count": 15}, "has shape [16, 64], expected [15, 64]"),
        ({"expert_count": 2**31 - 1}, "step35.expert_count is 2147483647, expected at most"),
        ({"expert_used_count": 17}, "expert_used_count is 17, expected at most step35.expert_count, 16"),
        ({"context_length": 2**31 - 1}, "step35.context_length is 2147483647, expected at most"),
        ({"general__alignment": 2**31 - 1}, "cut off; expected"),
    ):
        wrong = rewritten(path, tmp_path / "wrong.gguf", **changed)
        code, out, err = potluck("generate", "--model", wrong, *ASK)
        assert (code, out) == (2, "")
        assert says(err, f"error: {wrong}: … {message}") or says(err, f"error: {wrong}: {message}"), err
        assert "moe_" not in err
        assert "config.json" not in err


def test_parts_that_are_missing_or_another_model_s_are_one_line(
    potluck: Potluck, path: Path, tmp_path: Path
) -> None:
    parts = in_parts(path, tmp_path / "m", 3)
    other = in_parts(path, tmp_path / "other", 3, general__name="other")
    shutil.copyfile(other[2], parts[2])
    code, out, err = potluck("generate", "--model", parts[0], *ASK)
    assert (code, out) == (2, "")
    assert says(err, f"error: {parts[2]}: general.name is 'other' … a part of another model; dow"), err
    parts[2].unlink()
    code, out, err = potluck("generate", "--model", parts[0], *ASK)
    assert (code, out) == (2, "")
    assert says(err, f"error: {parts[2]}: No such file … needs all"), err


def test_scales_that_are_missing_are_one_line(potluck: Potluck, tmp_path: Path) -> None:
    directory = experts_in_fp8(
        write_random_checkpoint(tmp_path / "m", seed=1, num_layers=3, moe_layers=(1, 2), num_mtp_layers=0)
    )
    tensors = load_file(directory / "model.safetensors")
    name = "model.layers.2.moe.down_proj.weight"
    del tensors[f"{name}_scale_inv"]
    save_file(tensors, directory / "model.safetensors")
    code, out, err = potluck("generate", "--model", directory, *ASK)
    assert (code, out) == (2, "")
    assert says(err, f"tensor {name} is FP8 and has no scales; expected a tensor {name}_scale_inv of"), err


@pytest.mark.parametrize(
    "changed", [{"tokenizer__ggml__pre": "unheard-of"}, {"tokenizer__ggml__model": "llama"}]
)
def test_a_tokenizer_that_nobody_knows_leaves_token_ids(
    potluck: Potluck, path: Path, tmp_path: Path, changed: dict[str, str]
) -> None:
    unknown = rewritten(path, tmp_path / "unknown.gguf", **changed)
    ids = [document(potluck("generate", "--model", file, *ASK))["token_ids"] for file in (path, unknown)]
    assert ids[0] == ids[1]
    code, out, err = potluck("generate", "--model", unknown, "--prompt", "hello")
    assert (code, out) == (2, "")
    assert says(err, "unknown.gguf … expected … --token-ids")


def test_damaged_mtp_layers_are_needed_by_drafts_alone(potluck: Potluck, path: Path, tmp_path: Path) -> None:
    trunk, mtp = trunk_and_mtp(path, tmp_path, NUM_TRUNK)
    expected = document(potluck("generate", "--model", trunk, *ASK))["token_ids"]
    whole = mtp.read_bytes()

    mtp.write_bytes(whole[: len(whole) // 2])
    code, _, err = potluck("generate", "--model", trunk, *ASK)
    assert code == 0
    assert f"MTP layers are not taken: {mtp}: tensor" in err
    code, _, err = potluck("generate", "--model", trunk, *ASK, "--mtp", 1)
    assert code == 2
    assert says(err, f"(step35.nextn_predict_layers); … layers are not taken: {mtp}: tensor … truncated"), err

    mtp.write_bytes(whole)
    norm = next(t for t in gguf.GGUFReader(mtp, "r+").tensors if t.name == "blk.5.attn_norm.weight")
    norm.data[3] = np.nan
    del norm
    assert document(potluck("generate", "--model", trunk, *ASK))["token_ids"] == expected
    code, _, err = potluck("generate", "--model", trunk, *ASK, "--mtp", 1)
    assert code == 2
    message = "tensor blk.5.attn_norm.weight has a value that is not finite … or go without drafts (--mtp 0)"
    assert says(err, f"error: {mtp}: {message}"), err

    mtp.write_bytes(whole)
    less = without(mtp, tmp_path / "less", "blk.5.nextn.enorm.weight")
    less.replace(mtp)
    assert document(potluck("generate", "--model", trunk, *ASK))["token_ids"] == expected
    code, _, err = potluck("generate", "--model", trunk, *ASK, "--mtp", 1)
    assert code == 2
    assert says(err, f"error: {mtp}: tensor blk.5.nextn.enorm.weight is missing … (--mtp 0)"), err
