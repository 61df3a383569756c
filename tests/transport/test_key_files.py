"""Keys on disk: what is stored is loaded, by its owner only."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from placement.errors import KeyFileError
from transport.key_files import load_allowed, load_pair, store_allowed, store_pair
from transport.keys import KeyPair


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "keys"


def test_what_is_stored_is_loaded_and_only_its_owner_may_read_it(folder: Path) -> None:
    pair, other = KeyPair.make(), KeyPair.make()
    store_pair(folder / "attic.key", pair)
    assert load_pair(folder / "attic.key") == pair
    store_pair(folder / "attic.key", other)
    assert load_pair(folder / "attic.key") == other
    store_allowed(folder / "allowed", frozenset([pair.public, other.public]))
    assert load_allowed(folder / "allowed") == {pair.public, other.public}
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    assert sorted(path.name for path in folder.iterdir()) == ["allowed", "attic.key"]


def test_a_wide_umask_does_not_widen_a_key_file(folder: Path) -> None:
    before = os.umask(0)
    try:
        store_pair(folder / "attic.key", KeyPair.make())
    finally:
        os.umask(before)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "attic.key").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(("mode", "of_file"), [(0o640, True), (0o604, True), (0o750, False), (0o707, False)])
def test_keys_that_others_may_read_are_refused_in_one_line(folder: Path, mode: int, of_file: bool) -> None:
    path = folder / "attic.key"
    store_pair(path, KeyPair.make())
    (path if of_file else folder).chmod(mode)
    with pytest.raises(
        KeyFileError, match=rf"has mode {mode:04o}, .* expected 0[67]00: chmod [67]00 it"
    ) as caught:
        load_pair(path)
    assert "\n" not in str(caught.value)
    if not of_file:
        with pytest.raises(KeyFileError, match="chmod 700"):
            store_pair(path, KeyPair.make())


@pytest.mark.parametrize("damage", ["", "public x\nsecret y\n", "swapped", "another", "\u00e9"])
def test_a_file_without_a_pair_is_refused(folder: Path, damage: str) -> None:
    path, pair = folder / "attic.key", KeyPair.make()
    store_pair(path, pair)
    secret = {"swapped": pair.public, "another": KeyPair.make().secret}.get(damage)
    text = damage if secret is None else f"public {pair.public.decode()}\nsecret {secret.decode()}\n"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(KeyFileError, match=r"attic\.key: .*make new keys") as caught:
        load_pair(path)
    assert pair.secret.decode() not in str(caught.value)


def test_a_missing_file_and_a_line_that_is_no_key_are_named(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    with pytest.raises(KeyFileError, match=r"gone\.key: no such key file: make the keys first"):
        load_pair(folder / "gone.key")
    store_allowed(folder / "allowed", frozenset([KeyPair.make().public]))
    with (folder / "allowed").open("a", encoding="ascii") as file:
        file.write("me\n")
    with pytest.raises(KeyFileError, match=r"line 2 is 'me', expected a key of 40 characters"):
        load_allowed(folder / "allowed")


def test_what_is_no_folder_of_ours_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(KeyFileError, match="cannot be written"):
        store_pair(tmp_path / "file" / "attic.key", KeyPair.make())
