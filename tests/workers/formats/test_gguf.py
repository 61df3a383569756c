"""GGUF files that the gguf library wrote: read right, or refused in one line."""

from __future__ import annotations

import dataclasses
import os
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from models.tiny.gguf_file import write_gguf
from placement.errors import CheckpointError
from placement.weight_format import BFLOAT16, FLOAT16, FLOAT32, Q8_0, ExpertFormat
from tests.tiny_checkpoint import write_random_checkpoint
from tests.workers.formats.gguf_files import rewritten
from workers.config.rope import RopeDivisors
from workers.formats.dequantise import float32_rows, float32_values
from workers.formats.gguf.checkpoint import GgufCheckpoint
from workers.formats.gguf.model import find_gguf
from workers.formats.gguf.names import gguf_name, published_name
from workers.formats.gguf.types import READABLE
from workers.formats.open_model import load_config, open_model
from workers.formats.safetensors import SafetensorsCheckpoint
from workers.model_config import Step35Config

TINY = {"seed": 5, "num_layers": 5, "moe_layers": (2, 3, 4), "num_experts": 8, "num_mtp_layers": 2}
WRONG_NUMBERS = (0, 1, 31, 2**31, 2**32, 2**62, 2**63, 2**64 - 1, 12)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of 64 and 96 are whole blocks of 32; those of 48, of the experts' down matrices, are not."""
    return write_random_checkpoint(
        tmp_path_factory.mktemp("published") / "tiny",
        **TINY,
        share_expert_dim=48,
        moe_intermediate_size=48,
        swiglu_limits={4: 7.0},
        swiglu_limits_shared={4: 16.0, 6: 12.0},
    )


@pytest.fixture(scope="module")
def path(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(model_dir, path)
    return path


def test_the_configuration_is_the_published_ones(model_dir: Path, path: Path) -> None:
    found, published = load_config(path), Step35Config.load(model_dir)
    # float32 in the file, and the tensors say the other two.
    assert np.float32(found.rms_norm_eps) == np.float32(published.rms_norm_eps)
    expected = dataclasses.replace(
        published,
        rms_norm_eps=found.rms_norm_eps,
        zero_centered=False,
        use_moe_router_bias=None,
        use_head_wise_attn_gate=None,
        layers=found.layers,
    )
    assert found == expected
    for layer, other in zip(found.layers, published.layers, strict=True):
        assert dataclasses.replace(layer, rope_scaling=other.rope_scaling) == other
        assert isinstance(layer.rope_scaling, RopeDivisors) == (not layer.is_sliding)
    assert found.shape("a").fingerprint == published.shape("a").fingerprint


def test_the_published_scaling_is_divided_by_the_known_vector(tmp_path: Path) -> None:
    """The vector that other engines' files of Step-3.5-Flash have: rows 14 to 20 of 32."""
    scaling = {
        "rope_type": "llama3",
        "factor": 2.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 32.0,
        "original_max_position_embeddings": 131072,
    }
    directory = write_random_checkpoint(tmp_path / "m", **TINY, head_dim=128, rope_scaling=scaling)
    write_gguf(directory, tmp_path / "m.gguf")
    config = load_config(tmp_path / "m.gguf")
    assert config.layers[0].rotary_dim == 64
    rope = config.layers[0].rope_scaling
    assert isinstance(rope, RopeDivisors)
    between = [1.138363, 1.374499, 1.576436, 1.733729, 1.847569, 1.925649, 1.977251]
    assert rope.divisors == pytest.approx([1.0] * 14 + between + [2.0] * 11, rel=1e-6)
    assert config.layers[1].rotary_dim == 128


def test_every_tensor_is_what_the_gguf_library_reads(model_dir: Path, path: Path) -> None:
    checkpoint, published = GgufCheckpoint(find_gguf(path)), SafetensorsCheckpoint.open(model_dir)
    assert set(published.stored) < set(checkpoint.stored)
    kinds = set()
    for tensor in gguf.GGUFReader(path).tensors:
        kinds.add(tensor.tensor_type.name)
        expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        found = checkpoint.tensor(published_name(tensor.name), torch.float32)
        assert list(found.shape) == list(reversed(tensor.shape.tolist()))
        assert np.array_equal(found.numpy().reshape(-1), expected.reshape(-1))
    assert kinds == {"F32", "F16", "Q8_0"}
    for name in published.stored:
        found, plain = checkpoint.tensor(name, torch.float32), published.tensor(name, torch.float32)
        if name.endswith("norm.weight"):
            plain = plain + 1
        torch.testing.assert_close(found, plain, rtol=0, atol=float(plain.abs().max()) / 200)


@pytest.mark.parametrize(
    ("type_name", "form"), [("f32", FLOAT32), ("f16", FLOAT16), ("bf16", BFLOAT16), ("q8_0", Q8_0)]
)
def test_experts_come_as_stored(model_dir: Path, tmp_path: Path, type_name: str, form: Any) -> None:
    write_gguf(model_dir, tmp_path / "m.gguf", type_name)
    config, checkpoint = open_model(tmp_path / "m.gguf")
    assert isinstance(checkpoint, GgufCheckpoint)
    assert checkpoint.expert_format(3, config) == ExpertFormat(form, form, form if form != Q8_0 else FLOAT16)
    parts = checkpoint.expert(3, 5, config)
    for name, stored in zip(("gate", "up", "down"), parts, strict=True):
        whole = checkpoint.tensor(f"model.layers.3.moe.{name}_proj.weight", torch.float32)[5]
        assert (stored.rows, stored.columns) == tuple(whole.shape)
        assert stored.data.shape[0] == stored.rows
        assert stored.data.dtype is (torch.uint8 if stored.form == Q8_0 else getattr(torch, stored.form.name))
        values = float32_values(stored.data.view(torch.uint8).reshape(-1), stored.form)
        assert torch.equal(values, whole.reshape(-1))
    checkpoint.release()
    assert torch.equal(checkpoint.expert(3, 5, config)[0].data, parts[0].data)


def test_special_numbers_of_each_type_are_read_as_the_gguf_library_reads_them() -> None:
    """Subnormal scales, both zeros, infinities and every 16-bit pattern."""
    every = np.arange(2**16, dtype="<u2").view(np.uint8)
    for form, kind in (
        (FLOAT16, gguf.GGMLQuantizationType.F16),
        (BFLOAT16, gguf.GGMLQuantizationType.BF16),
    ):
        stored = every if kind is gguf.GGMLQuantizationType.BF16 else every.view("<f2")
        expected = gguf.quants.dequantize(stored, kind)
        assert np.array_equal(float32_values(torch.from_numpy(every), form).numpy(), expected, equal_nan=True)
    scales = np.arange(2**16, dtype="<u2").view(np.uint8).reshape(-1, 2)
    weights = np.random.default_rng(1).integers(0, 256, (2**16, 32), dtype=np.uint8)
    blocks = np.concatenate([scales, weights], axis=1)
    with np.errstate(invalid="ignore"):
        expected = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType.Q8_0)
    found = float32_values(torch.from_numpy(blocks.reshape(-1)), Q8_0)
    assert np.array_equal(found.numpy(), expected.reshape(-1), equal_nan=True)


def test_names_go_there_and_back(path: Path) -> None:
    for tensor in gguf.GGUFReader(path).tensors:
        published = published_name(tensor.name)
        if tensor.name != "rope_freqs.weight":
            assert published != tensor.name
            assert gguf_name(published) == tensor.name
    assert published_name("blk.2.attn_sinks.weight") == "model.layers.2.attn_sinks.weight"
    assert published_name("blk.02.attn_q.weight") == "blk.02.attn_q.weight"
    with pytest.raises(KeyError):
        gguf_name("model.layers.0.else.weight")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"general__architecture": "llama"}, r"general\.architecture is 'llama', expected 'step35'"),
        ({"block_count": 2**31 - 1}, r"step35\.block_count is 2147483647, expected at most"),
        ({"split__count": 3}, r"a part of a model in 3 files; expected it to be called NAME-00001-of-00003"),
        ({"block_count": 6}, r"step35\.attention\.sliding_window_pattern .* expected 6 entries"),
        (
            {"nextn_predict_layers": 7},
            r"nextn_predict_layers is 7, expected less than .* the other blocks",
        ),
        ({"attention__head_count": [4, 6, 6, 6, 5, 6, 6]}, r"head_count\[4\] is 5, expected 4 as in"),
        ({"attention__head_count": 5}, r"step35\.attention\.head_count is 5, expected a multiple of the 2"),
        ({"attention__head_count": None}, r"step35\.attention\.head_count is missing, expected an integer"),
        ({"block_count": None}, r"step35\.block_count is missing, expected an integer"),
        ({"attention__key_length": None}, r"step35\.attention\.key_length is missing, expected an integer"),
        ({"attention__sliding_window_pattern": [0.5] * 7}, "window_pattern .* expected true or false"),
        (
            {"rope__scaling__factor": 2.0},
            r"rope\.scaling\.factor is 2.0, expected 1: full layers",
        ),
        ({"attention__key_length_swa": 32}, "key_length_swa is 32, expected what .*key_length says, 16"),
        (
            {"attention__value_length": 32},
            r"value_length is 32, expected what .*key_length says, 16",
        ),
        ({"expert_gating_func": 1}, "expert_gating_func is 1, expected 2"),
        ({"rope__dimension_count": 15}, r"dimension_count\[0\] is .*, expected an even part of the 16"),
        ({"rope__scaling__type": "yarn"}, r"rope\.scaling\.type is 'yarn'"),
        ({"expert_used_count": 9}, r"step35\.expert_used_count is 9, expected at most"),
        ({"embedding_length": "wide"}, r"step35\.embedding_length is 'wide', expected an integer"),
        ({"vocab_size": 321}, r"vocab_size is 321, expected the rows of tensor token_embd\.weight, 320"),
        (
            {"swiglu_clamp_exp": [float("nan")] * 7},
            r"step35\.swiglu_clamp_exp\[0\] is nan",
        ),
        ({"tokenizer__ggml__eos_token_id": 320}, r"tokenizer\.ggml\.eos_token_id is 320, expected a token"),
    ],
)
def test_wrong_metadata_are_refused_by_their_own_key(
    path: Path, tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    wrong = rewritten(path, tmp_path / "wrong.gguf", **changed)
    with pytest.raises(CheckpointError, match=f"wrong.gguf: .*{message}") as caught:
        load_config(wrong)
    assert "\n" not in str(caught.value)


def test_absent_keys_mean_what_llama_cpp_takes_them_for(path: Path, tmp_path: Path) -> None:
    bare = rewritten(
        path,
        tmp_path / "bare.gguf",
        expert_weights_norm=None,
        expert_weights_scale=None,
        expert_gating_func=None,
        swiglu_clamp_exp=None,
        rope__freq_base=None,
        rope__freq_base_swa=None,
        attention__head_count_kv=None,
        tokenizer__ggml__eos_token_id=None,
        vocab_size=None,
        rope__dimension_count=16,
    )
    config, full = load_config(bare), load_config(path)
    assert not config.norm_expert_weight
    assert config.moe_router_scaling_factor == 1.0
    assert [layer.swiglu_limit for layer in config.layers] == [0.0] * 7
    assert {layer.rope_theta for layer in config.layers} == {10_000.0}
    assert [layer.num_kv_heads for layer in config.layers] == [layer.num_heads for layer in full.layers]
    assert [layer.rotary_dim for layer in config.layers] == [layer.rotary_dim for layer in full.layers]
    assert config.eos_token_ids == (2,)


def test_one_value_stands_for_all_blocks(path: Path, tmp_path: Path) -> None:
    config = load_config(
        rewritten(
            path,
            tmp_path / "same.gguf",
            attention__head_count=4,
            attention__head_count_kv=2,
            feed_forward_length=[96] * 7,
            expert_feed_forward_length=[0, 0, 48, 48, 48, 0, 0],
            attention__sliding_window_pattern=[0, 1, 1, 1, 0, 1, 1],
            rope__scaling__type="linear",
            rope__scaling__factor=1.0,
            swiglu_clamp_shexp=3.0,
        )
    )
    assert {layer.num_heads for layer in config.layers} == {4}
    assert {layer.swiglu_limit_shared for layer in config.layers} == {3.0}
    assert (config.intermediate_size, config.moe_intermediate_size) == (96, 48)
    assert [layer.is_sliding for layer in config.layers] == [False, True, True, True, False, True, True]


def tensor_entry(content: bytes, name: str) -> int:
    """Where the dimensions of a tensor stand in a file."""
    text = name.encode()
    return content.index(struct.pack("<Q", len(text)) + text) + 8 + len(text)


def test_tensors_that_do_not_load_are_named(path: Path, tmp_path: Path) -> None:
    content = path.read_bytes()
    name = "blk.3.ffn_up_exps.weight"
    at = tensor_entry(content, name)
    # number of dimensions, three dimensions, type, offset
    for position, packed, message in (
        (at + 28, struct.pack("<I", 9), "is stored as Q8_1, expected one of F32, F16, "),
        (at + 28, struct.pack("<I", 4711), "is stored as GGML type 4711, expected one of"),
        (at + 4, struct.pack("<Q", 65), "has rows of 65 weights, expected a multiple of 32 for type Q8_0"),
        (at + 20, struct.pack("<Q", 1 << 62), "ends at byte .* truncated"),
        (at + 12, struct.pack("<QQ", 0, 1 << 63), "has shape .* expected sizes above 0"),
        (at + 32, struct.pack("<Q", 1 << 62), "ends at byte .* truncated"),
        (at + 32, struct.pack("<Q", 33), "begins at byte 33 of the data, expected a multiple of"),
    ):
        wrong = tmp_path / "wrong.gguf"
        wrong.write_bytes(content[:position] + packed + content[position + len(packed) :])
        with pytest.raises(CheckpointError, match=f"wrong.gguf: tensor '{re.escape(name)}' {message}"):
            open_model(wrong)
    wrong.write_bytes(content + bytes(4096))
    open_model(wrong)
    wrong.write_bytes(content[:-40])
    with pytest.raises(CheckpointError, match=r"tensor .* ends at byte .* truncated, download it again"):
        open_model(wrong)


def with_fields(content: bytes, changed: Mapping[str, tuple[int | None, int]]) -> bytes:
    """A file with another type (None for the same) and an offset moved so far, by the tensor's name."""
    wrong = bytearray(content)
    for name, (kind, further) in changed.items():
        at = tensor_entry(content, name)
        at += 4 + 8 * struct.unpack_from("<I", content, at)[0]
        if kind is not None:
            struct.pack_into("<I", wrong, at, kind)
        struct.pack_into("<Q", wrong, at + 4, struct.unpack_from("<Q", content, at + 4)[0] + further)
    return bytes(wrong)


def test_every_type_that_is_not_the_tensor_s_own_is_refused(path: Path, tmp_path: Path) -> None:
    """One bit of a type that takes fewer bytes would leave a gap, and a text that looks like any other."""
    content, wrong = path.read_bytes(), tmp_path / "wrong.gguf"
    tensors = gguf.GGUFReader(path).tensors
    last = max(tensors, key=lambda tensor: tensor.data_offset)
    smaller = 0
    for tensor in tensors:
        for kind in (tensor.tensor_type ^ (1 << bit) for bit in range(6)):
            form = READABLE.get(kind)
            if form is None or not form.fits(int(tensor.shape[0])) or tensor.name == last.name:
                continue
            num_bytes = tensor.n_elements // form.block_weights * form.block_bytes
            if -(-num_bytes // 32) == -(-int(tensor.n_bytes) // 32):
                continue
            wrong.write_bytes(with_fields(content, {tensor.name: (kind, 0)}))
            with pytest.raises(CheckpointError, match=r"wrong\.gguf: .*(damaged|truncated), download "):
                open_model(wrong)
            smaller += num_bytes < tensor.n_bytes
    assert smaller > len(tensors) / 2


def test_a_gap_between_tensors_or_before_them_is_refused(path: Path, tmp_path: Path) -> None:
    content, wrong = path.read_bytes(), tmp_path / "wrong.gguf"
    tensors = sorted(gguf.GGUFReader(path).tensors, key=lambda tensor: tensor.data_offset)
    names = [tensor.name for tensor in tensors]
    for first, place in ((0, "where the data begin"), (7, f"right behind tensor '{re.escape(names[6])}'")):
        begin = tensors[first].data_offset
        moved = with_fields(content, dict.fromkeys(names[first:], (None, 32)))
        wrong.write_bytes(moved[:begin] + bytes(32) + moved[begin:])
        message = (
            f"{wrong}: tensor '{re.escape(names[first])}' begins at byte {begin + 32:,} of the file, "
            f"expected byte {begin:,}, {place}: .* compare its checksum$"
        )
        with pytest.raises(CheckpointError, match=message):
            open_model(wrong)


def test_norms_and_routers_of_few_bits_are_refused(path: Path, tmp_path: Path) -> None:
    """Where the places of tensors give nothing away."""
    content, wrong = path.read_bytes(), tmp_path / "wrong.gguf"
    tensors = sorted(gguf.GGUFReader(path).tensors, key=lambda tensor: tensor.data_offset)
    for name in ("blk.2.ffn_gate_inp.weight", "blk.0.attn_norm.weight", "blk.2.ffn_norm.weight"):
        at = next(index for index, tensor in enumerate(tensors) if tensor.name == name)
        begin, end = tensors[at].data_offset, tensors[at + 1].data_offset
        stays = -(-(tensors[at].n_elements // 32 * 34) // 32) * 32
        less = end - begin - int(stays)
        changed: dict[str, tuple[int | None, int]] = {t.name: (None, -less) for t in tensors[at + 1 :]}
        moved = with_fields(content, changed | {name: (8, 0)})
        wrong.write_bytes(moved[: end - less] + moved[end:])
        with pytest.raises(
            CheckpointError, match=f"tensor '{re.escape(name)}' is stored as Q8_0, expected F32"
        ):
            open_model(wrong)


def test_what_is_no_model_is_refused(path: Path, tmp_path: Path) -> None:
    imatrix = Path(__file__).parents[2] / "placement" / "fixtures" / "imatrix-step35.gguf"
    with pytest.raises(CheckpointError, match=r"general\.architecture is .*, expected 'step35'"):
        load_config(imatrix)
    other = tmp_path / "other.gguf"
    other.write_bytes(b"PK\3\4" + bytes(100))
    with pytest.raises(CheckpointError, match="not a GGUF file"):
        load_config(other)
    with pytest.raises(CheckpointError, match=r"none\.gguf: No such file"):
        load_config(tmp_path / "none.gguf")
    folder = tmp_path / "folder.gguf"
    folder.mkdir()
    with pytest.raises(CheckpointError, match=r"it is a directory without config\.json; .*or a GGUF file"):
        load_config(folder)
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(CheckpointError, match=f"^{path}: it is a .*; expected a model: .*or a GGUF file"):
            load_config(path)


def test_a_missing_or_misshapen_tensor_is_named(path: Path) -> None:
    config, checkpoint = open_model(path)
    assert isinstance(checkpoint, GgufCheckpoint)
    with pytest.raises(CheckpointError, match=r"expected a tensor blk\.9\.attn_q\.weight, found none"):
        checkpoint.tensor("model.layers.9.self_attn.q_proj.weight", torch.float32)
    with pytest.raises(CheckpointError, match=r"expected a tensor blk\.0\.ffn_gate_exps\.weight"):
        checkpoint.expert(0, 0, config)
    wider = dataclasses.replace(config, moe_num_experts=9)
    with pytest.raises(CheckpointError, match=r"ffn_gate_exps\.weight has shape \[8, 48, 64\], expected \[9"):
        checkpoint.expert(3, 0, wider)


def test_a_file_that_changed_since_it_was_opened_is_refused(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(path.read_bytes())
    checkpoint = GgufCheckpoint(find_gguf(copy))
    copy.write_bytes(path.read_bytes()[:-64])
    with pytest.raises(CheckpointError, match="nobody changes a model in use"):
        checkpoint.tensor("model.norm.weight", torch.float32)
    copy.write_bytes(path.read_bytes())
    checkpoint = GgufCheckpoint(find_gguf(copy))
    before = checkpoint.matrix("lm_head.weight").data
    other = tmp_path / "other.gguf"
    other.write_bytes(bytes(copy.stat().st_size))
    other.replace(copy)
    with pytest.raises(CheckpointError, match="another file took its place"):
        checkpoint.check_unchanged()
    assert torch.equal(before, checkpoint.matrix("lm_head.weight").data)
    checkpoint.release()
    with pytest.raises(CheckpointError, match="another file took its place"):
        checkpoint.matrix("lm_head.weight")


@pytest.fixture(scope="module")
def small_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """As small a model as there can be: most of it is header."""
    folder = tmp_path_factory.mktemp("small")
    directory = write_random_checkpoint(
        folder / "m", seed=1, num_layers=2, moe_layers=(1,), num_mtp_layers=1, hidden_size=32, vocab_size=32,
        num_experts=2, top_k=1, num_heads=2, num_sliding_heads=2, num_kv_heads=1, intermediate_size=32,
    )  # fmt: skip
    write_gguf(directory, folder / "m.gguf")
    return (folder / "m.gguf").read_bytes()


def header_bytes(content: bytes) -> int:
    """Bytes in front of the tensor data."""
    return content.index(struct.pack("<Q", 17) + b"token_embd.weight") + 200


@pytest.mark.parametrize("shift", range(0, 64, 3))
def test_a_header_is_read_whole_wherever_its_fields_lie(
    small_file: bytes, tmp_path: Path, shift: int
) -> None:
    """Headers are read ahead in parts of 65,536 bytes."""
    (tmp_path / "small.gguf").write_bytes(small_file)
    padding = "x" * (2**16 - header_bytes(small_file) + shift)
    long = rewritten(tmp_path / "small.gguf", tmp_path / "long.gguf", general__description=padding)
    read_all(long)
    assert load_config(long) == load_config(tmp_path / "small.gguf")


def test_views_are_of_the_mapped_file_and_rows_those_asked_for(path: Path) -> None:
    config, checkpoint = open_model(path)
    embedding = checkpoint.matrix("model.embed_tokens.weight")
    assert embedding.data.data_ptr() == checkpoint.matrix("model.embed_tokens.weight").data.data_ptr()
    whole = checkpoint.tensor("model.embed_tokens.weight", torch.float32)
    rows = torch.tensor([7, 319, 0, 7])
    assert torch.equal(float32_rows(embedding, rows), whole[rows])
    gates = [checkpoint.expert(3, expert, config)[0].data.data_ptr() for expert in range(8)]
    assert np.diff(gates).tolist() == [checkpoint.expert(3, 0, config)[0].data.nbytes] * 7
    with pytest.raises(CheckpointError, match=r"tensor output_norm\.weight has shape .* expected a matrix"):
        checkpoint.matrix("model.norm.weight")


def read_all(path: Path) -> None:
    """Everything that a run reads."""
    config, checkpoint = open_model(path)
    for name in checkpoint.stored:
        checkpoint.tensor(name, torch.float32)
    assert isinstance(checkpoint, GgufCheckpoint)
    for layer in config.moe_layers:
        checkpoint.expert_format(layer, config)
        checkpoint.expert(layer, config.moe_num_experts - 1, config)


def damaged(content: bytes, seed: int) -> bytes:
    """A file with some bytes or whole numbers of its header replaced, or its end cut off."""
    random = np.random.default_rng(seed)
    wrong, length = bytearray(content), header_bytes(content)
    for _ in range(random.integers(0, 4)):
        position = int(random.integers(0, length - 8))
        if random.integers(2):
            wrong[position] = int(random.integers(256))
        else:
            struct.pack_into(
                "<Q", wrong, position, [0, 1, 31, 2**31, 2**32, 2**62, 2**63, 2**64 - 1][seed % 8]
            )
    return bytes(wrong[: int(random.integers(0, len(wrong)))] if seed % 4 == 0 else wrong)


@pytest.mark.parametrize(
    "seeds", [range(600), pytest.param(range(600, 4000), marks=pytest.mark.long)], ids=len
)
def test_a_damaged_file_is_read_or_refused_but_never_crashes(
    seeds: range, small_file: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "damaged.gguf"
    messages = []
    for seed in seeds:
        path.write_bytes(damaged(small_file, seed))
        try:
            read_all(path)
        except CheckpointError as error:
            messages.append(str(error))
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
    assert len(seeds) / 2 < len(messages) < len(seeds)
    assert not any("\n" in message for message in messages)
