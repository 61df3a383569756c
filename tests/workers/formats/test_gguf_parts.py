"""Models in several GGUF files: parts of a split one, and MTP layers in a file of their own."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from models.tiny.gguf_file import write_gguf
from placement.errors import CheckpointError
from tests.tiny_checkpoint import write_random_checkpoint
from tests.workers.formats.gguf_files import in_parts, rewritten, trunk_and_mtp, without
from workers.formats.checkpoint import Checkpoint
from workers.formats.open_model import load_config, model_name, open_model

NUM_TRUNK = 4


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gguf")
    write_random_checkpoint(
        folder / "m", seed=5, num_layers=NUM_TRUNK, moe_layers=(2, 3), num_experts=8, num_mtp_layers=2
    )
    write_gguf(folder / "m", folder / "whole.gguf")
    return folder / "whole.gguf"


def assert_same(found: Checkpoint, expected: Checkpoint) -> None:
    assert set(found.stored) == set(expected.stored)
    for name in expected.stored:
        assert torch.equal(found.tensor(name, torch.float32), expected.tensor(name, torch.float32))


@pytest.mark.parametrize("number", [1, 2, 3])
def test_any_part_gives_the_whole_model(path: Path, tmp_path: Path, number: int) -> None:
    parts = in_parts(path, tmp_path / "whole", 3)
    config, checkpoint = open_model(parts[number - 1])
    expected_config, expected = open_model(path)
    assert config == expected_config
    assert_same(checkpoint, expected)
    assert model_name(parts[number - 1]) == model_name(path) == "whole"
    _, _, down = checkpoint.expert(3, 7, config)
    assert torch.equal(down.data, expected.expert(3, 7, config)[2].data)


def test_a_missing_part_is_named(path: Path, tmp_path: Path) -> None:
    parts = in_parts(path, tmp_path / "whole", 3)
    parts[1].unlink()
    for asked in (parts[0], parts[2]):
        with pytest.raises(CheckpointError, match=r"whole-00002-of-00003\.gguf: No such file .* needs all"):
            load_config(asked)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"split__no": 1}, r"00003\.gguf: split\.no is 1, expected 2: it is another part"),
        ({"split__count": 4}, r"00003\.gguf: split\.count is 4, expected 3"),
        (
            {"split__tensors__count": 7},
            r"00003\.gguf: split\.tensors\.count is 7, expected \d+: it is an",
        ),
        (
            {"general__name": "Another"},
            r"00003\.gguf: general\.name is 'Another', expected 'm' as in whole-00001-of-00003\.gguf: it is "
            "a part of another model",
        ),
        ({"expert_count": 9}, r"00003\.gguf: step35\.expert_count is 9, expected 8 as in"),
        (
            {"attention__head_count": [4] * 6},
            r"00003\.gguf: step35\.attention\.head_count is \[4, 4, .* expected \[4, 6, ",
        ),
    ],
)
def test_a_part_that_says_otherwise_is_refused(
    path: Path, tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    first = in_parts(path, tmp_path / "whole", 3, **changed)[0]
    with pytest.raises(CheckpointError, match=message) as caught:
        load_config(first)
    assert "\n" not in str(caught.value)


def test_parts_of_other_models_and_parts_twice_are_refused(path: Path, tmp_path: Path) -> None:
    parts = in_parts(path, tmp_path / "whole", 3)
    shutil.copyfile(parts[0], parts[1])
    with pytest.raises(CheckpointError, match=r"00002-of-00003\.gguf: split\.no is 0, expected 1"):
        load_config(parts[0])
    other = in_parts(path, tmp_path / "other", 2)
    shutil.copyfile(other[1], parts[1])
    with pytest.raises(CheckpointError, match=r"00002-of-00003\.gguf: split\.count is 2, expected 3"):
        load_config(parts[0])
    # Cut otherwise, but as many of them: the parts have tensors in common.
    parts = in_parts(path, tmp_path / "whole", 3)
    fewer = without(path, tmp_path / "fewer.gguf", "output_norm.weight", "blk.0.ffn_up.weight")
    fewer = rewritten(
        fewer, tmp_path / "padded.gguf", {"a": np.ones(4, np.float32), "b": np.ones(4, np.float32)}
    )
    shutil.copyfile(in_parts(fewer, tmp_path / "else", 3)[1], parts[1])
    with pytest.raises(CheckpointError, match=r"tensor .* is in whole-.*gguf too; expected the 3 parts"):
        load_config(parts[0])


def test_a_part_may_repeat_what_the_first_says(path: Path, tmp_path: Path) -> None:
    repeated = {"general__name": "m", "expert_count": 8, "general__note": "only here"}
    parts = in_parts(path, tmp_path / "whole", 3, **repeated)
    assert_same(open_model(parts[0])[1], open_model(path)[1])


def test_parts_without_the_one_asked_for_and_their_directory_say_what_to_give(
    path: Path, tmp_path: Path
) -> None:
    parts = in_parts(path, tmp_path / "whole", 3)
    with pytest.raises(CheckpointError, match=r"3 parts of one model; give any of them, such as .*00001-of"):
        load_config(parts[0].parent)
    parts[1].unlink()
    with pytest.raises(
        CheckpointError, match=r"No such file.*called as a part of a split model, which needs"
    ):
        load_config(parts[1])


def test_a_renamed_part_is_refused(path: Path, tmp_path: Path) -> None:
    part = in_parts(path, tmp_path / "whole", 3)[0].rename(tmp_path / "model.gguf")
    with pytest.raises(CheckpointError, match=r"a part of a model in 3 files; expected it to be called"):
        load_config(part)


def test_mtp_layers_beside_the_trunk_are_taken(path: Path, tmp_path: Path) -> None:
    trunk, mtp = trunk_and_mtp(path, tmp_path, NUM_TRUNK)
    config, checkpoint = open_model(trunk)
    expected_config, expected = open_model(path)
    assert config == expected_config
    assert_same(checkpoint, expected)
    assert checkpoint.notes == (f"MTP layers are those of {mtp.name}",)
    assert load_config(trunk).num_nextn_predict_layers == 2
    assert expected.notes == ()


def test_a_trunk_in_parts_takes_mtp_layers_in_parts(path: Path, tmp_path: Path) -> None:
    trunk, mtp = trunk_and_mtp(path, tmp_path, NUM_TRUNK)
    trunks, mtps = in_parts(trunk, tmp_path / "m", 2), in_parts(mtp, tmp_path / "mtp-m", 2)
    trunk.unlink()
    mtp.unlink()
    _, checkpoint = open_model(trunks[1])
    assert_same(checkpoint, open_model(path)[1])
    assert checkpoint.notes == (f"MTP layers are those of {mtps[0].name}",)


def test_the_mtp_file_called_like_the_trunk_comes_first(path: Path, tmp_path: Path) -> None:
    trunk, mtp = trunk_and_mtp(path, tmp_path, NUM_TRUNK)
    shutil.copyfile(mtp, tmp_path / "mtp-a.gguf")
    assert open_model(trunk)[1].notes == ("MTP layers are those of mtp-model.gguf",)
    mtp.unlink()
    assert open_model(trunk)[1].notes == ("MTP layers are those of mtp-a.gguf",)


def test_an_mtp_file_of_another_model_is_left_alone_and_told(path: Path, tmp_path: Path) -> None:
    trunk, mtp = trunk_and_mtp(path, tmp_path, NUM_TRUNK)
    mtp = mtp.rename(tmp_path / "original")
    for changed, reason in (
        ({"attention__layer_norm_rms_epsilon": 0.5}, "its step35.attention.layer_norm_rms_epsilon is not"),
        ({"block_count": NUM_TRUNK + 3}, "expected 7 entries"),
        ({"general__architecture": "llama"}, "it has MTP layers of 'llama'"),
        ({"rope__freq_base": 77.0}, "its step35.rope.freq_base[0] is not the trunk's"),
        ({"expert_used_count": 3}, "its step35.expert_used_count is not the trunk's"),
        ({"attention__sliding_window": 0}, "mtp-other.gguf: step35.attention.sliding_window is 0, expected"),
    ):
        rewritten(mtp, tmp_path / "mtp-other.gguf", **changed)
        config, checkpoint = open_model(trunk)
        assert config.num_nextn_predict_layers == 0
        assert not checkpoint.has_below(f"model.layers.{NUM_TRUNK}.")
        (note,) = checkpoint.notes
        assert note.startswith(f"MTP layers are not taken: {tmp_path / 'mtp-other.gguf'}: ")
        assert reason in note
    last = [t.name for t in gguf.GGUFReader(mtp).tensors if t.name.startswith("blk.5.")]
    without(mtp, tmp_path / "mtp-other.gguf", *last)
    assert "mtp-other.gguf: it lacks block 5" in open_model(trunk)[1].notes[0]
    (tmp_path / "mtp-other.gguf").write_bytes(mtp.read_bytes()[: mtp.stat().st_size // 2])
    config, checkpoint = open_model(trunk)
    assert config.num_nextn_predict_layers == 0
    assert checkpoint.notes[0].startswith(f"MTP layers are not taken: {tmp_path / 'mtp-other.gguf'}: tensor")
    assert "truncated" in checkpoint.notes[0]
    (tmp_path / "mtp-other.gguf").write_bytes(b"GGUF" + bytes(9))
    assert "mtp-other.gguf: too short for a GGUF file: 13 bytes" in open_model(trunk)[1].notes[0]


def test_messages_name_the_file_that_a_tensor_is_in(path: Path, tmp_path: Path) -> None:
    trunk, mtp = trunk_and_mtp(path, tmp_path, NUM_TRUNK)
    less = without(mtp, tmp_path / "less", "blk.5.attn_q.weight").rename(mtp)
    config, checkpoint = open_model(trunk)
    assert checkpoint.file_of("model.layers.5.enorm.weight") == less
    assert checkpoint.file_of("model.norm.weight") == trunk
    with pytest.raises(CheckpointError, match=r"mtp-model\.gguf: expected a tensor blk\.5\.attn_q\.weight"):
        checkpoint.matrix("model.layers.5.self_attn.q_proj.weight")
    with pytest.raises(CheckpointError, match=r"/model\.gguf: expected a tensor blk\.1\.ffn_gate_exps"):
        checkpoint.expert_format(1, config)


def test_a_file_of_mtp_layers_that_nobody_reads_may_change(path: Path, tmp_path: Path) -> None:
    trunk, mtp = trunk_and_mtp(path, tmp_path, NUM_TRUNK)
    _, checkpoint = open_model(trunk)
    checkpoint.tensor("model.norm.weight", torch.float32)
    mtp.unlink()
    checkpoint.check_unchanged()
    with pytest.raises(CheckpointError, match=r"mtp-model\.gguf: No such file"):
        checkpoint.tensor("model.layers.5.enorm.weight", torch.float32)


def test_a_file_of_mtp_layers_alone_is_no_model(path: Path, tmp_path: Path) -> None:
    _, mtp = trunk_and_mtp(path, tmp_path, NUM_TRUNK)
    with pytest.raises(CheckpointError, match=r"mtp-model\.gguf: it has MTP layers alone, expected"):
        load_config(mtp)


def test_a_trunk_that_announces_mtp_layers_it_lacks_loads(path: Path, tmp_path: Path) -> None:
    names = [t.name for t in gguf.GGUFReader(path).tensors if t.name.startswith(("blk.4.", "blk.5."))]
    trunk = without(path, tmp_path / "trunk.gguf", *names)
    config, checkpoint = open_model(trunk)
    assert config.num_nextn_predict_layers == 2
    assert not checkpoint.has_below("model.layers.4.")


def test_queries_keys_and_values_may_lie_in_one_tensor(path: Path, tmp_path: Path) -> None:
    reader = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    parts = [f"blk.1.attn_{part}.weight" for part in "qkv"]
    whole = [gguf.quants.dequantize(reader[name].data, reader[name].tensor_type) for name in parts]
    fused = rewritten(
        without(path, tmp_path / "less.gguf", *parts),
        tmp_path / "fused.gguf",
        {"blk.1.attn_qkv.weight": np.concatenate(whole)},
    )
    checkpoint = open_model(fused)[1]
    assert set(checkpoint.stored) == set(open_model(path)[1].stored)
    for part, values in zip("qkv", whole, strict=True):
        found = checkpoint.matrix(f"model.layers.1.self_attn.{part}_proj.weight")
        assert (found.name, found.rows) == ("blk.1.attn_qkv.weight", len(values))
        assert np.array_equal(found.data.numpy(), values)


def test_an_mtp_layer_without_a_head_uses_the_trunk_s(path: Path, tmp_path: Path) -> None:
    less = without(
        path,
        tmp_path / "l.gguf",
        "blk.5.nextn.shared_head_head.weight",
        "blk.5.nextn.shared_head_norm.weight",
    )
    _, checkpoint = open_model(less)
    head = checkpoint.matrix("model.layers.5.transformer.shared_head.output.weight")
    assert torch.equal(head.data, checkpoint.matrix("lm_head.weight").data)
    assert checkpoint.has("model.layers.5.transformer.shared_head.norm.weight")


def test_a_folder_of_gguf_files_is_told_apart_from_a_model_s_directory(path: Path) -> None:
    (path.parent / "m" / "config.json").rename(path.parent / "m" / "away")
    (path.parent / "m" / "x.gguf").touch()
    with pytest.raises(CheckpointError, match=r"no config\.json, but 1 GGUF files; .* such as .*x\.gguf"):
        load_config(path.parent / "m")
