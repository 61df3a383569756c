"""`potluck keys`: keys are made, listed and taken away, and a server knows them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.api.key_file import change_keys, with_key, without_key
from orchestrator.api.keys import MOST_KEYS, ApiKey, client_of, read_keys
from orchestrator.api.limits import Limits
from placement.errors import InputError, KeyFilesError
from tests.orchestrator.command_line import Potluck, document, says
from tests.orchestrator.processes import DEADLINE_S, ROOT

DIGEST = "0" * 64


def test_a_key_is_printed_alone_and_leads_to_its_name(potluck: Potluck, tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    code, out, err = potluck(
        "keys", "add", path, "ann", "--requests-at-once", 4, "--requests-per-minute", 120
    )
    assert code == 0, err
    (key,) = out.splitlines()
    assert client_of(key, read_keys(path)) == "ann"
    assert read_keys(path)[0].limits == Limits(4, 120)
    assert path.stat().st_mode & 0o777 == 0o600
    assert key not in err + path.read_text()


def test_keys_are_listed_and_removed(potluck: Potluck, tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    made = document(potluck("keys", "add", path, "ann", "--json"))
    assert document(potluck("keys", "add", path, "bob", "--requests-at-once", 2, "--json"))["name"] == "bob"
    assert document(potluck("keys", "list", path, "--json"))["keys"] == [
        {"name": "ann", "requests_at_once": None, "requests_per_minute": None},
        {"name": "bob", "requests_at_once": 2, "requests_per_minute": None},
    ]
    _, out, _ = potluck("keys", "list", path)
    assert "ann" in out
    assert DIGEST[:1] * 8 not in out
    assert document(potluck("keys", "remove", path, "ann", "--json")) == {"removed": "ann"}
    assert client_of(made["key"], read_keys(path)) is None
    assert [key.name for key in read_keys(path)] == ["bob"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["add", "FILE", "ann"], "'ann' … another name"),
        (["add", "FILE", ""], "'' … 1 to 64"),
        (["add", "FILE", "a\nb"], r"'a\nb' … printed"),
        (["add", "FILE", "bob", "--requests-at-once", "0"], "--requests-at-once: … at least 1"),
        (["remove", "FILE", "ann"], "'ann' … only key"),
        (["remove", "FILE", "bob"], "'bob' … 'ann'"),
        (["list", "nowhere/keys.json"], "nowhere/keys.json … no such file … `potluck keys add`"),
        (["add", "nowhere/keys.json", "ann"], "nowhere/keys.json"),
        (["remove", "nokeys.json", "ann"], "nokeys.json: there is no such file"),
        ([], "potluck keys: … `potluck keys add` … `potluck keys list` … `potluck keys remove`"),
        (["nonsense"], "potluck keys: … `potluck keys add`"),
    ],
)
def test_a_mistake_is_one_line_and_changes_nothing(
    potluck: Potluck, tmp_path: Path, arguments: list[str], expected: str
) -> None:
    path = tmp_path / "keys.json"
    potluck("keys", "add", path, "ann")
    before = path.read_bytes()
    code, out, err = potluck("keys", *[str(path) if word == "FILE" else word for word in arguments])
    assert (code, out) == (2, "")
    assert says(err, expected), err
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["keys.json"]


def test_a_file_that_others_may_read_gets_no_key(potluck: Potluck, tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    potluck("keys", "add", path, "ann")
    path.chmod(0o640)
    code, out, err = potluck("keys", "add", path, "bob")
    assert (code, out) == (2, "")
    assert says(err, f"{path} … other users … chmod 600"), err


@pytest.mark.parametrize("content", ["# A page", '{"model": "any"}', "[" * 100_000])
def test_what_is_no_file_of_keys_is_not_to_be_closed_to_others(
    potluck: Potluck, tmp_path: Path, content: str
) -> None:
    path = tmp_path / "README.md"
    path.write_text(content)
    path.chmod(0o644)
    for words in (["add", path, "ann"], ["list", path], ["remove", path, "ann"]):
        code, out, err = potluck("keys", *words)
        assert (code, out) == (2, "")
        assert says(err, f"{path}: not a file of keys"), err
        assert "chmod" not in err
    assert path.read_text() == content


def test_changes_at_the_same_time_are_all_kept(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    command = [sys.executable, "-m", "orchestrator.cli.main", "keys", "add", str(path)]
    running = [
        subprocess.Popen([*command, name], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for name in "abcd"
    ]
    assert [process.wait(DEADLINE_S) for process in running] == [0] * 4
    assert sorted(key.name for key in read_keys(path)) == list("abcd")


def test_a_change_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    change_keys(path, lambda keys: with_key(keys, ApiKey("ann", DIGEST)))
    with pytest.raises(InputError):
        change_keys(path, lambda keys: without_key(keys, "bob"))
    assert read_keys(path) == (ApiKey("ann", DIGEST),)


def test_a_link_that_leads_nowhere_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.symlink_to(tmp_path / "elsewhere" / "keys.json")
    with pytest.raises(KeyFilesError, match="no such file"):
        change_keys(path, lambda keys: with_key(keys, ApiKey("ann", DIGEST)))
    assert path.is_symlink()


def test_a_file_has_no_more_keys_than_a_server_takes() -> None:
    full = tuple(ApiKey(str(number), DIGEST) for number in range(MOST_KEYS))
    assert len(with_key(full[1:], full[0])) == MOST_KEYS
    with pytest.raises(InputError, match="no more fit"):
        with_key(full, ApiKey("ann", DIGEST))
