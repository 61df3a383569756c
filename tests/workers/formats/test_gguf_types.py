"""Every type that GGUF files come in, mixed within a file: read as the gguf library reads it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from benchmarks.random_gguf import SMALL, FileTypes, write_random_gguf
from placement.errors import CheckpointError
from placement.weight_format import FORMATS, ExpertFormat
from workers.formats.dequantise import float32_rows, float32_values
from workers.formats.gguf.names import published_name
from workers.formats.gguf.types import NUMBERS, READABLE
from workers.formats.open_model import open_model
from workers.kernels.matrix import TORCH_DTYPES
from workers.probe.random_blocks import TYPES

SHAPE = replace(SMALL, moe_layers=7, experts=3, top_k=2, mtp_layers=1)
# Seven layers of three: each type once in an expert, none beside itself.
EXPERTS = tuple((TYPES[i % 21], TYPES[(i + 8) % 21], TYPES[(i + 16) % 21]) for i in range(0, 21, 3))


def test_all_types_of_the_kernels_that_ggml_has_are_read() -> None:
    assert {form.name for form in READABLE.values()} == set(TYPES) == set(FORMATS) - {"fp8_e4m3"}
    for number, form in READABLE.items():
        weights, num_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(number)]
        assert (form.block_weights, form.block_bytes) == (weights, num_bytes)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    types = FileTypes(EXPERTS, head="q5_k", output="q6_k", embedding="iq4_nl")
    # The name says another type, as names do.
    return write_random_gguf(tmp_path_factory.mktemp("gguf") / "model-Q4_K_M.gguf", SHAPE, types)


def test_every_tensor_has_its_own_type_and_values(path: Path) -> None:
    _, checkpoint = open_model(path)
    kinds = set()
    for tensor in gguf.GGUFReader(path).tensors:
        kinds.add(READABLE[tensor.tensor_type].name)
        expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        found = checkpoint.tensor(published_name(tensor.name), torch.float32)
        assert np.array_equal(found.numpy().reshape(-1), expected.reshape(-1))
    assert kinds == set(TYPES)


def test_experts_are_views_in_their_layer_s_types(path: Path) -> None:
    config, checkpoint = open_model(path)
    for layer, forms in zip(config.moe_layers, EXPERTS, strict=True):
        assert checkpoint.expert_format(layer, config) == ExpertFormat(*(FORMATS[name] for name in forms))
        for part, matrix in zip(("gate", "up", "down"), checkpoint.expert(layer, 2, config), strict=True):
            whole = checkpoint.tensor(f"model.layers.{layer}.moe.{part}_proj.weight", torch.float32)[2]
            assert (matrix.rows, matrix.columns) == tuple(whole.shape)
            if matrix.form not in TORCH_DTYPES:
                assert matrix.data.shape == (matrix.rows, matrix.form.row_bytes(matrix.columns))
            assert matrix.data.is_contiguous()
            rows = torch.tensor([3, 0])
            assert torch.equal(float32_rows(matrix, rows), whole[rows])


def test_a_thousand_experts_take_milliseconds(path: Path) -> None:
    """Views of a layer are cut once: asking again gives the same ones."""
    config, checkpoint = open_model(path)
    assert checkpoint.expert(1, 0, config) is checkpoint.expert(1, 0, config)


def test_threads_get_the_layers_that_they_ask_for(path: Path) -> None:
    config, checkpoint = open_model(path)

    def gates(layer: int) -> list[str]:
        found = []
        for turn in range(300):
            found.append(checkpoint.expert(layer, turn % 3, config)[0].name)
            if turn % 7 == 0:
                checkpoint.release()
        return found

    with ThreadPoolExecutor(4) as pool:
        for layer, found in zip((1, 2, 3, 4), pool.map(gates, (1, 2, 3, 4)), strict=True):
            assert set(found) == {f"blk.{layer}.ffn_gate_exps.weight"}


@pytest.mark.parametrize("name", TYPES)
def test_any_bytes_are_read_as_the_library_reads_them(name: str) -> None:
    """Random bytes have NaN and infinite scales among them."""
    form = FORMATS[name]
    generator = np.random.default_rng(NUMBERS[form])
    blocks = generator.integers(0, 256, (4096, form.block_bytes), dtype=np.uint8)
    kind = gguf.GGMLQuantizationType(NUMBERS[form])
    plain = {"float32": "<f4", "float16": "<f2"}
    stored = blocks.view(plain[name]) if name in plain else blocks
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(stored, kind).reshape(-1)
    found = float32_values(torch.from_numpy(blocks).view(-1), form)
    assert np.array_equal(found.numpy(), expected, equal_nan=True)


@pytest.mark.parametrize("number", [9, 15, 19, 29, 34, 35, 40, 4711])
def test_other_types_are_refused_by_name(path: Path, tmp_path: Path, number: int) -> None:
    name = b"blk.2.ffn_up_exps.weight"
    content = bytearray(path.read_bytes())
    at = content.index(name) + len(name) + 4 + 3 * 8
    content[at : at + 4] = number.to_bytes(4, "little")
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"m\.gguf: tensor 'blk\.2\.ffn_up_exps\.weight'") as caught:
        open_model(tmp_path / "m.gguf")
    known = {kind.value: kind.name for kind in gguf.GGMLQuantizationType}
    assert f"is stored as {known.get(number, 'GGML type 4711')}, expected one of F32, F16" in str(
        caught.value
    )
    assert "\n" not in str(caught.value)
