"""API keys: what the file has of them, and whose one is."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.api.keys import ApiKey, client_of, make_key, read_keys, write_keys
from orchestrator.api.limits import Limits
from placement.errors import KeyFilesError

DIGEST = "0" * 64


def write(path: Path, text: str) -> Path:
    path.touch(0o600)
    path.write_text(text)
    return path


def test_a_key_leads_to_its_name_and_no_other_text_does(tmp_path: Path) -> None:
    text, ann = make_key("ann")
    other, bob = make_key("bob")
    assert client_of(text, [ann, bob]) == "ann"
    assert client_of(other, [ann, bob]) == "bob"
    for wrong in ("", text[:-1], text + "x", ann.sha256, "\udcff"):
        assert client_of(wrong, [ann, bob]) is None


def test_the_file_has_hashes_and_limits_and_not_the_key(tmp_path: Path) -> None:
    text, ann = make_key("ann", Limits(running=3, per_minute=60))
    path = tmp_path / "keys.json"
    write_keys(path, [ann, ApiKey("bob", DIGEST)])
    assert text not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_keys(path) == (ann, ApiKey("bob", DIGEST))


def test_keys_are_long_and_never_the_same() -> None:
    texts = {make_key("ann")[0] for _ in range(100)}
    assert len(texts) == 100
    assert min(map(len, texts)) >= 43


def test_a_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    write_keys(path, [make_key("ann")[1]])
    path.chmod(0o644)
    with pytest.raises(KeyFilesError, match="other users"):
        read_keys(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "expected JSON"),
        ("[" * 100_000, "expected JSON"),
        ("[]", "in `keys`"),
        ('{"keys": []}', "1 to 1,000"),
        ('{"keys": [1]}', r"keys\[0\]"),
        ('{"keys": [{"name": "a", "sha256": "x"}]}', "sha256"),
        (f'{{"keys": [{{"name": "", "sha256": "{DIGEST}"}}]}}', "name"),
        (f'{{"keys": [{{"name": "a", "sha256": "{DIGEST}", "extra": 1}}]}}', "no more"),
        (f'{{"keys": [{{"name": "a", "sha256": "{DIGEST}", "running": 0}}]}}', "running"),
        (f'{{"keys": [{{"name": "a", "sha256": "{DIGEST}", "per_minute": true}}]}}', "per_minute"),
        (f'{{"keys": [{", ".join([f"""{{"name": "a", "sha256": "{DIGEST}"}}"""] * 2)}]}}', "one name"),
        (
            f'{{"keys": [{{"name": "a", "sha256": "{DIGEST}", "running": 1, "running": 9}}]}}',
            "'running' stands twice",
        ),
    ],
)
def test_a_damaged_file_is_named_with_what_is_wrong(tmp_path: Path, text: str, words: str) -> None:
    path = write(tmp_path / "keys.json", text)
    with pytest.raises(KeyFilesError, match=words) as caught:
        read_keys(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(KeyFilesError, match="no such file"):
        read_keys(tmp_path / "none")
