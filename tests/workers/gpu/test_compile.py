"""Compiled kernels in the user's cache: what is damaged there, another user's, or cannot be kept."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from tests.cuda_on_cpu.card import Card
from workers.gpu.compile import compile_module
from workers.gpu.modules import module_of
from workers.gpu.opening import open_device


def compiled_files(card: Card, cache: Path) -> list[Path]:
    open_device("cuda", cache=cache).function("round_rows_32")
    return list(cache.iterdir())


@pytest.mark.parametrize("kept", [0, 16, 1000, None])
def test_damaged_files_of_compiled_kernels_are_made_anew(
    card: Card, tmp_path: Path, kept: int | None
) -> None:
    (file,) = compiled_files(card, tmp_path)
    whole = file.read_bytes()
    file.write_bytes(whole[:kept] if kept is not None else whole[:-1] + bytes([whole[-1] ^ 1]))
    assert compiled_files(card, tmp_path) == [file]
    assert file.read_bytes() == whole


def test_kernels_are_compiled_where_nothing_can_be_kept(
    card: Card, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    open_device("cuda", cache=tmp_path / "file" / "cache").function("round_rows_32")

    def without_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", without_home)
    open_device("cuda").function("round_rows_32")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to other users")
def test_another_users_file_is_not_trusted(card: Card, tmp_path: Path) -> None:
    (file,) = compiled_files(card, tmp_path)
    image = b"another user's code"
    file.write_bytes(hashlib.sha256(image).digest() + image)
    os.chown(file, 12345, 12345)
    compiled_files(card, tmp_path)


def test_a_compiler_without_anything_to_say_writes_into_no_bytes_of_others() -> None:
    assert compile_module(module_of("round_rows_32"), (8, 6), as_text=True).log == ""
    # Python keeps one object of each such value.
    assert [bytes([value])[0] for value in range(256)] == list(range(256))
