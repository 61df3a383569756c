"""Files of torch.save are read as torch reads them, and hostile ones run nothing."""

from __future__ import annotations

import builtins
import contextlib
import io
import os
import pickle
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from placement.errors import RoutingFileError
from placement.interop.torch_file import load_torch_file
from tests.examples import examples

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.bool,
]


def rewritten(path: Path, change: Callable[[str, bytes], bytes | None]) -> Path:
    """The archive with each entry's bytes passed through `change`; None drops the entry."""
    changed = path.with_name("changed.pt")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(changed, "w", zipfile.ZIP_STORED) as target:
        for name in source.namelist():
            data = change(name, source.read(name))
            if data is not None:
                target.writestr(name, data)
    return changed


def with_pickle(path: Path, pickled: bytes) -> Path:
    """A torch file whose pickle is `pickled`."""
    torch.save({"a": torch.arange(4)}, path)
    return rewritten(path, lambda name, data: pickled if name.endswith("data.pkl") else data)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_come_as_arrays_of_their_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    tensor = torch.arange(24).reshape(2, 3, 4).to(dtype)
    torch.save(tensor, tmp_path / "t.pt")
    loaded = load_torch_file(tmp_path / "t.pt")
    assert loaded.dtype == tensor.numpy().dtype
    assert np.array_equal(loaded, tensor.numpy())


def test_bfloat16_comes_as_float32(tmp_path: Path) -> None:
    tensor = torch.randn(5, 7, dtype=torch.bfloat16)
    torch.save(tensor.T, tmp_path / "t.pt")
    assert np.array_equal(load_torch_file(tmp_path / "t.pt"), tensor.T.float().numpy())


@pytest.mark.parametrize(
    "view",
    [
        lambda t: t.T,
        lambda t: t[1:, ::2],
        lambda t: t[2],
        lambda t: t[:, :1].expand(-1, 50),
        lambda t: t[:0],
        lambda t: t.sum(),
    ],
    ids=["transposed", "strided", "row", "expanded", "empty", "scalar"],
)
def test_views_are_read_through_their_strides(
    tmp_path: Path, view: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    tensor = view(torch.arange(30).reshape(5, 6))
    torch.save({"view": tensor}, tmp_path / "t.pt")
    assert np.array_equal(load_torch_file(tmp_path / "t.pt")["view"], tensor.numpy())


def test_containers_and_numbers_come_as_they_are(tmp_path: Path) -> None:
    content = {
        "none": None,
        "numbers": [1, -2, 2**40, -(2**70), 1.5, True, False],
        "text": "Straße",
        "nested": [{"a": (1,), "b": (1, 2, 3, 4)}, [], {}, ()],
        7: list(range(3000)),
        "shared": torch.zeros(2),
        "size": torch.Size([3, 4]),
    }
    content["again"] = content["shared"]
    torch.save(content, tmp_path / "t.pt")
    loaded = load_torch_file(tmp_path / "t.pt")
    for key in ("none", "numbers", "text", "nested", 7):
        assert loaded[key] == content[key]
    assert loaded["size"] == (3, 4)
    assert np.array_equal(loaded["again"], [0, 0])


def test_tensors_saved_from_a_gpu_need_none(tmp_path: Path) -> None:
    torch.save({"a": torch.arange(4)}, tmp_path / "t.pt")

    def as_if_on_gpu(name: str, data: bytes) -> bytes:
        location = b"X\x03\x00\x00\x00cpu"
        assert location in data or not name.endswith("data.pkl")
        return data.replace(location, b"X\x06\x00\x00\x00cuda:0")

    assert np.array_equal(load_torch_file(rewritten(tmp_path / "t.pt", as_if_on_gpu))["a"], [0, 1, 2, 3])


def test_byte_order_is_heeded(tmp_path: Path) -> None:
    torch.save({"a": torch.arange(4, dtype=torch.int32)}, tmp_path / "t.pt")

    def big_endian(name: str, data: bytes) -> bytes:
        if name.endswith("byteorder"):
            return b"big"
        return np.frombuffer(data, "<i4").astype(">i4").tobytes() if "/data/" in name else data

    assert np.array_equal(load_torch_file(rewritten(tmp_path / "t.pt", big_endian))["a"], [0, 1, 2, 3])


class Hostile:
    """Runs a command when unpickled by Python."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


print_as_python_has_it = print


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("function", [os.system, eval, exec, getattr, print_as_python_has_it])
def test_a_hostile_pickle_runs_nothing(
    tmp_path: Path,
    function: Callable[..., Any],
    protocol: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if function is print_as_python_has_it:  # a test that ran Ray leaves Ray's own in its place
        monkeypatch.setattr(builtins, "print", function)
    marker = tmp_path / "was-run"
    code = f"open({str(marker)!r}, 'w')" if function in (eval, exec) else f"touch {marker}"
    path = with_pickle(tmp_path / "t.pt", pickle.dumps({"a": Hostile(function, code)}, protocol))
    with pytest.raises(RoutingFileError, match=r"changed\.pt: .*(refused|opcode)"):
        load_torch_file(path)
    assert not marker.exists()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "pickled",
    [
        b"(S'touch was-run'\nios\nsystem\n.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x01\x00\x00\x00aK\x01sb.",
        b"\x80\x02ctorch\nload\nX\x01\x00\x00\x00x\x85R.",
        b"\x80\x02cbuiltins\nobject\n)\x81.",
        b"\x80\x02\x82\x01.",
    ],
    ids=["inst", "build on a function", "torch.load", "newobj", "extension"],
)
def test_other_ways_to_call_are_refused(tmp_path: Path, pickled: bytes) -> None:
    with pytest.raises(RoutingFileError, match="refused"):
        load_torch_file(with_pickle(tmp_path / "t.pt", pickled))


@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        (b"", "pickle|exhausted"),
        (b"\x80\x02K\x01", "exhausted|STOP"),
        (b"\x80\x02.", "takes more than it put"),
        (b"\x80\x02(u.", "expected a dict"),
        (b"\x80\x02h\x05.", "recalls what it did not memoize"),
        (b"\x80\x02]t.", "no mark"),
        (b"\x80\x02K\x01K\x01R.", "calls what is not a function"),
        (b"\x80\x02}]K\x01s.", "text or whole numbers as keys"),
        (b"\x80\x02K\x01Q.", "expected a storage"),
    ],
)
def test_a_malformed_pickle_is_one_error(tmp_path: Path, pickled: bytes, message: str) -> None:
    with pytest.raises(RoutingFileError, match=message):
        load_torch_file(with_pickle(tmp_path / "t.pt", pickled))


def test_a_tensor_larger_than_its_storage_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.arange(4)}, tmp_path / "t.pt")

    def cut(name: str, data: bytes) -> bytes:
        return data[:-8] if "/data/" in name else data

    with pytest.raises(RoutingFileError, match="needs 4 elements, its storage has 3"):
        load_torch_file(rewritten(tmp_path / "t.pt", cut))


def test_a_small_file_cannot_claim_a_large_memory(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1).expand(1 << 40)}, tmp_path / "t.pt")
    with pytest.raises(RoutingFileError, match="elements from 1"):
        load_torch_file(tmp_path / "t.pt")
    torch.save({"a": torch.zeros(1000)}, tmp_path / "t.pt")
    packed = tmp_path / "packed.pt"
    with zipfile.ZipFile(tmp_path / "t.pt") as source, zipfile.ZipFile(packed, "w") as target:
        for name in source.namelist():
            target.writestr(name, source.read(name), zipfile.ZIP_DEFLATED)
    with pytest.raises(RoutingFileError, match="compressed"):
        load_torch_file(packed)


def test_what_is_not_a_torch_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RoutingFileError, match="No such file"):
        load_torch_file(tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(RoutingFileError, match=r"not a readable zip archive.*torch.save writes since 1.6"):
        load_torch_file(tmp_path / "text.pt")
    torch.save({"a": 1}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(RoutingFileError, match="save it again"):
        load_torch_file(tmp_path / "old.pt")
    np.savez(tmp_path / "arrays.npz", a=np.zeros(3))
    with pytest.raises(RoutingFileError, match=r"expected one <name>/data\.pkl"):
        load_torch_file(tmp_path / "arrays.npz")
    torch.save({"a": torch.zeros(100)}, tmp_path / "t.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "t.pt").read_bytes()[:-200])
    with pytest.raises(RoutingFileError, match=r"cut\.pt"):
        load_torch_file(tmp_path / "cut.pt")
    missing = rewritten(tmp_path / "t.pt", lambda name, data: None if "/data/" in name else data)
    with pytest.raises(RoutingFileError, match=r"expected a file .*/data/.* inside, found none"):
        load_torch_file(missing)


# Opcodes that are refused have their arguments decoded all the same.
@pytest.mark.filterwarnings("ignore:invalid escape sequence")
@examples(200)
@given(st.data())
def test_a_damaged_pickle_is_read_or_refused_but_never_crashes(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    buffer = io.BytesIO()
    torch.save({"records": [{"ids": torch.arange(6).reshape(2, 3), "n": [1, 2]}], "x": None}, buffer)
    path = tmp_path_factory.mktemp("damaged") / "t.pt"
    path.write_bytes(buffer.getvalue())
    flips = data.draw(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=4))

    def damage(name: str, content: bytes) -> bytes:
        damaged = bytearray(content)
        for position, value in flips if name.endswith("data.pkl") else []:
            damaged[position % len(damaged)] = value
        return bytes(damaged)

    with contextlib.suppress(RoutingFileError):
        load_torch_file(rewritten(path, damage))


def test_storages_that_overlap_do_not_add_up_to_a_large_memory(tmp_path: Path) -> None:
    """Many small views in bfloat16, each of which becomes an array of its own."""
    tensor = torch.zeros(1 << 22, dtype=torch.bfloat16)
    torch.save({"a": [tensor[:] for _ in range(80)]}, tmp_path / "t.pt")
    tracemalloc.start()
    with pytest.raises(RoutingFileError, match=r"its tensors take more than 2\.15? GB"):
        load_torch_file(tmp_path / "t.pt")
    tracemalloc.stop()


@pytest.mark.slow
def test_a_long_pickle_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "t.pt", "w") as archive:
        archive.writestr("t/data.pkl", b"\x80\x02(" + b"N" * 2_100_000 + b"t.")
    with pytest.raises(RoutingFileError, match="more than 2,000,000 opcodes"):
        load_torch_file(tmp_path / "t.pt")


def test_what_doubles_with_each_reference_is_not_written_out(tmp_path: Path) -> None:
    doubled = b"\x80\x02)" + b"q\x00h\x00\x86" * 64 + b"Q."
    with zipfile.ZipFile(tmp_path / "t.pt", "w") as archive:
        archive.writestr("t/data.pkl", doubled)
    with pytest.raises(RoutingFileError, match="expected a storage, found a tuple"):
        load_torch_file(tmp_path / "t.pt")


def test_a_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pt")
    with pytest.raises(RoutingFileError, match="it is a pipe"):
        load_torch_file(tmp_path / "pipe.pt")


def test_a_name_that_is_refused_is_shown_with_both_its_quotes(tmp_path: Path) -> None:
    pickled = b"c" + b"m" * 200 + b"\nname\n."
    with pytest.raises(RoutingFileError, match=r"names '(m+)'…, which plain data do not need"):
        load_torch_file(with_pickle(tmp_path / "t.pt", pickled))
