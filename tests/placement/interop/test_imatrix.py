"""Importance matrices that llama.cpp itself wrote, and GGUF files that are not what they should be."""

from __future__ import annotations

import contextlib
import os
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from placement.errors import RoutingFileError
from placement.files.gguf_file import GgufFile
from placement.interop.imatrix import read_imatrix
from tests.examples import examples
from tests.placement.real_routing import FIXTURES
from tests.placement.shapes import small_shape

SHAPE = small_shape()
IMATRIX = FIXTURES / "imatrix-step35.gguf"


def gguf_bytes(
    tensors: dict[str, np.ndarray[Any, Any]], kind: str = "imatrix", version: int = 3, alignment: int = 32
) -> bytes:
    """A GGUF file laid out as ggml's docs/gguf.md says; float32 tensors, two key-value pairs."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value.encode())) + value.encode()

    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), 2)
    head += text("general.type") + struct.pack("<I", 8) + text(kind)
    head += text("general.alignment") + struct.pack("<II", 4, alignment)
    data = bytearray()
    for name, array in tensors.items():
        head += text(name) + struct.pack("<I", array.ndim)
        head += struct.pack(f"<{array.ndim}Q", *reversed(array.shape)) + struct.pack("<IQ", 0, len(data))
        data += array.astype("<f4").tobytes()
        data += b"\0" * (-len(data) % alignment)
    return head + b"\0" * (-len(head) % alignment) + data


def counts_of_every_layer(num_experts: int = 10, layers: tuple[int, ...] = (1, 2, 3)) -> dict[str, Any]:
    counts = np.full((num_experts, 1), 8.0)
    return {
        f"blk.{layer}.ffn_{part}_exps.weight.counts": counts.copy()
        for layer in layers
        for part in ("gate", "up", "down")
    }


def test_a_matrix_of_llama_cpp_holds_counts_of_every_expert() -> None:
    stats = read_imatrix(IMATRIX, SHAPE)
    assert stats.num_tokens == 23 * 128
    assert stats.trace is None
    assert stats.source == "llama-imatrix, imatrix-step35.gguf on text.txt"
    # As the gguf package of llama.cpp shows them.
    assert stats.counts[0].tolist() == [618, 1342, 690, 64, 403, 257, 183, 231, 919, 1181]
    assert stats.counts[2].tolist() == [379, 167, 215, 777, 310, 564, 691, 935, 1538, 312]


def test_the_header_tells_what_llama_cpp_wrote() -> None:
    gguf = GgufFile.open(IMATRIX, RoutingFileError)
    assert gguf.metadata["imatrix.chunk_count"] == 23
    assert list(gguf.metadata["imatrix.datasets"]) == ["text.txt"]
    assert gguf.tensors["blk.1.ffn_gate_exps.weight.in_sum2"].shape == (10, 16)
    assert np.all(gguf.float32("blk.1.ffn_gate_exps.weight.in_sum2", "counts") >= 0)


def test_the_older_form_is_refused_with_a_way_out() -> None:
    with pytest.raises(RoutingFileError, match=r"imatrix\.dat: not a GGUF file"):
        read_imatrix(FIXTURES / "imatrix.dat", SHAPE)
    with pytest.raises(RoutingFileError, match=r"one count for all experts.*writes GGUF"):
        read_imatrix(FIXTURES / "imatrix-from-dat.gguf", SHAPE)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (small_shape(num_moe_layers=5), "no counts for the experts of layer 4"),
        (small_shape(num_experts=12), "expected counts of 12 experts, found 10"),
        (small_shape(top_k=8), "expected at most one choice a token; is top 8 right"),
    ],
)
def test_a_matrix_of_another_model_is_refused(shape: Any, message: str) -> None:
    with pytest.raises(RoutingFileError, match=message):
        read_imatrix(IMATRIX, shape)


def test_any_alignment_and_version_is_read(tmp_path: Path) -> None:
    path = tmp_path / "i.gguf"
    for version, alignment in ((2, 32), (3, 8), (3, 256)):
        path.write_bytes(gguf_bytes(counts_of_every_layer(), version=version, alignment=alignment))
        assert read_imatrix(path, SHAPE).num_tokens == 40


def test_fused_gate_and_up_are_found(tmp_path: Path) -> None:
    path = tmp_path / "i.gguf"
    path.write_bytes(
        gguf_bytes({f"blk.{n}.ffn_gate_up_exps.weight.counts": np.full(10, 4.0) for n in (1, 2, 3)})
    )
    assert read_imatrix(path, SHAPE).num_tokens == 20


def test_layers_that_disagree_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "i.gguf"
    tensors = counts_of_every_layer()
    tensors["blk.2.ffn_up_exps.weight.counts"][3] += 1
    path.write_bytes(gguf_bytes(tensors))
    with pytest.raises(RoutingFileError, match="saw different tokens"):
        read_imatrix(path, SHAPE)
    tensors = counts_of_every_layer()
    for part in ("gate", "up", "down"):
        tensors[f"blk.2.ffn_{part}_exps.weight.counts"] *= 2
    path.write_bytes(gguf_bytes(tensors))
    with pytest.raises(RoutingFileError, match="80 choices in layer 1, 160 in layer 2"):
        read_imatrix(path, SHAPE)
    tensors = counts_of_every_layer()
    for part in ("gate", "up", "down"):
        tensors[f"blk.3.ffn_{part}_exps.weight.counts"][:] = 0
    path.write_bytes(gguf_bytes(tensors))
    with pytest.raises(RoutingFileError, match="layer 3 has no tokens"):
        read_imatrix(path, SHAPE)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0])
def test_numbers_that_are_no_counts_are_refused(tmp_path: Path, bad: float) -> None:
    tensors = counts_of_every_layer()
    tensors["blk.1.ffn_gate_exps.weight.counts"][0] = bad
    path = tmp_path / "i.gguf"
    path.write_bytes(gguf_bytes(tensors))
    with pytest.raises(RoutingFileError, match="expected counts of 10 experts"):
        read_imatrix(path, SHAPE)


def test_a_gguf_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf_bytes(counts_of_every_layer(), kind="model"))
    with pytest.raises(RoutingFileError, match="found a GGUF of type 'model'"):
        read_imatrix(path, SHAPE)
    path.write_bytes(gguf_bytes({}, version=1))
    with pytest.raises(RoutingFileError, match="found version 1"):
        read_imatrix(path, SHAPE)
    path.write_bytes(b"GGUF" + struct.pack(">IQQ", 3, 0, 0))
    with pytest.raises(RoutingFileError, match="a big-endian file"):
        read_imatrix(path, SHAPE)


def test_a_file_that_claims_more_than_it_holds_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "i.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60))
    with pytest.raises(RoutingFileError, match="claims 1,152,921,504,606,846,976 key-value pairs in 24 B"):
        read_imatrix(path, SHAPE)
    path.write_bytes(IMATRIX.read_bytes()[:-5000])
    with pytest.raises(RoutingFileError, match="cut off"):
        read_imatrix(path, SHAPE)
    with pytest.raises(RoutingFileError, match="No such file"):
        read_imatrix(tmp_path / "none.gguf", SHAPE)


@examples(200)
@given(st.integers(0, 200), st.lists(st.tuples(st.integers(0, 1300), st.integers(0, 255)), max_size=4))
def test_a_damaged_file_is_read_or_refused_but_never_crashes(
    tmp_path_factory: pytest.TempPathFactory, cut: int, flips: list[tuple[int, int]]
) -> None:
    damaged = bytearray(IMATRIX.read_bytes())
    for position, value in flips:
        damaged[position] = value
    path = tmp_path_factory.mktemp("damaged") / "i.gguf"
    path.write_bytes(damaged[: len(damaged) - cut])
    with contextlib.suppress(RoutingFileError):
        read_imatrix(path, SHAPE)


def test_a_file_of_holes_cannot_claim_a_large_memory(tmp_path: Path) -> None:
    """Holes take no room on disk, so a file's size alone is no bound."""
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"a"
    for value, message in (
        (struct.pack("<IQ", 8, 1 << 35), "its header takes more than 134.2 MB"),
        (struct.pack("<IIQ", 9, 0, 1 << 35), "its header has more than 2,000,000 values"),
    ):
        path = tmp_path / "holes.gguf"
        path.write_bytes(head + value)
        os.truncate(path, 1 << 37)
        tracemalloc.start()
        with pytest.raises(RoutingFileError, match=message):
            read_imatrix(path, SHAPE)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        path.unlink()
        assert peak < 20_000_000
    tensors = counts_of_every_layer()
    path.write_bytes(
        gguf_bytes(
            {
                name: np.zeros((1 << 20, 1 << 5)) if i == 0 else a
                for i, (name, a) in enumerate(tensors.items())
            }
        )
    )
    with pytest.raises(RoutingFileError, match=r"takes 134.2 MB, expected counts of experts"):
        read_imatrix(path, SHAPE)


def test_a_file_that_becomes_a_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    path = tmp_path / "i.gguf"
    path.write_bytes(IMATRIX.read_bytes())
    gguf = GgufFile.open(path, RoutingFileError)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(RoutingFileError, match="it is a pipe"):
        gguf.float32("blk.1.ffn_gate_exps.weight.counts", "counts")
