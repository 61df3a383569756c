"""A cluster's secrets: private, kept, never more on a box than it needs."""

from __future__ import annotations

import os
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from orchestrator.cluster.keys_folder import ensure_keys, read_box_keys, remove_keys
from placement.errors import KeyFilesError

ADDRESSES = {"study": "192.168.1.10", "attic": "192.168.1.11"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / ".potluck" / "home"


def test_what_is_made_is_this_users_alone_and_is_kept(folder: Path) -> None:
    umask = os.umask(0)
    try:
        made = ensure_keys(folder, "home", ADDRESSES)
    finally:
        os.umask(umask)
    assert ensure_keys(folder, "home", ADDRESSES) == made
    for path in (folder, *folder.rglob("*")):
        wanted = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert names == {
        "keys/study.key",
        "keys/attic.key",
        "token",
        "tls/ca.key",
        "tls/ca.crt",
        "tls/node.key",
        "tls/node.crt",
    }
    assert (folder.parent / ".gitignore").read_text() == "*\n"


def test_each_node_has_a_pair_of_its_own_and_no_secret_is_shown(folder: Path) -> None:
    made = ensure_keys(folder, "home", ADDRESSES)
    assert made.pairs["study"] != made.pairs["attic"]
    assert len(made.token) == 64
    shown = repr(made)
    for secret in (made.token, made.pairs["study"].secret.decode(), made.tls.key.decode()[40:80]):
        assert secret not in shown


def test_a_new_node_gets_keys_and_the_others_keep_theirs(folder: Path) -> None:
    before = ensure_keys(folder, "home", ADDRESSES)
    after = ensure_keys(folder, "home", {**ADDRESSES, "den": "192.168.1.12"})
    assert {name: after.pairs[name] for name in ADDRESSES} == before.pairs
    assert after.token == before.token
    assert after.tls.authority == before.tls.authority
    assert after.tls.certificate != before.tls.certificate


def test_the_certificate_is_renewed_near_its_end(folder: Path) -> None:
    now = datetime.now(UTC)
    before = ensure_keys(folder, "home", ADDRESSES, now)
    assert ensure_keys(folder, "home", ADDRESSES, now + timedelta(days=300)) == before
    after = ensure_keys(folder, "home", ADDRESSES, now + timedelta(days=340))
    assert after.tls.certificate != before.tls.certificate
    assert (folder / "tls" / "node.crt").read_bytes() == after.tls.certificate


def test_a_box_gets_what_it_needs_and_no_more(folder: Path, tmp_path: Path) -> None:
    made = ensure_keys(folder, "home", ADDRESSES)
    files = made.files_of("attic", {"study"})
    everything = b"".join(files.values())
    assert made.pairs["study"].secret not in everything
    assert made.tls.authority_key not in everything
    box = tmp_path / "box"
    for name, content in files.items():
        (box / name).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        (box / name).write_bytes(content)
        (box / name).chmod(0o600)
    box.chmod(0o700)
    found = read_box_keys(box, "attic")
    assert found.own == made.pairs["attic"]
    assert found.allowed == {made.pairs["study"].public}
    with pytest.raises(KeyFilesError, match="no keys of node 'study' here: run `potluck up`"):
        read_box_keys(box, "study")


@pytest.mark.parametrize(
    ("path", "mode", "wanted"),
    [
        (".", 0o755, "0700: run `chmod 700"),
        ("keys", 0o710, "0700: run `chmod 700"),
        ("keys/attic.key", 0o644, "0600: run `chmod 600"),
        ("token", 0o640, "0600: run `chmod 600"),
        ("tls/ca.key", 0o604, "0600: run `chmod 600"),
    ],
)
def test_wider_modes_are_refused_in_one_line(folder: Path, path: str, mode: int, wanted: str) -> None:
    ensure_keys(folder, "home", ADDRESSES)
    (folder / path).chmod(mode)
    with pytest.raises(KeyFilesError, match=rf"other users may use it \(mode {mode:04o}\), .*{wanted}"):
        ensure_keys(folder, "home", ADDRESSES)


@pytest.mark.parametrize(
    ("path", "content", "message"),
    [
        ("keys/attic.key", b"short\n", "expected a CURVE pair"),
        ("token", b"", "expected Ray's token of 64 hexadecimal digits: remove it"),
        ("token", b"x" * 2_000_000, "expected a key or certificate, found more than"),
    ],
)
def test_damaged_files_are_refused(folder: Path, path: str, content: bytes, message: str) -> None:
    ensure_keys(folder, "home", ADDRESSES)
    (folder / path).write_bytes(content)
    with pytest.raises(KeyFilesError, match=message):
        ensure_keys(folder, "home", ADDRESSES)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / ".potluck").write_text("in the way")
    with pytest.raises(KeyFilesError, match=r"cannot make .*potluck"):
        ensure_keys(tmp_path / ".potluck" / "home", "home", ADDRESSES)


def test_keys_are_removed_and_nothing_else_is(folder: Path) -> None:
    ensure_keys(folder, "home", ADDRESSES)
    (folder / "probe.json").write_text("{}")
    remove_keys(folder)
    assert [path.name for path in folder.iterdir()] == ["probe.json"]
    remove_keys(folder)
    remove_keys(folder / "none")
