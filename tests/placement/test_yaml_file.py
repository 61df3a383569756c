"""Any file at all in place of one of YAML: the mapping in it, or one line of the reader's own error."""

from __future__ import annotations

from pathlib import Path

import pytest

from placement.errors import StudyFileError
from placement.yaml_file import read_mapping


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "file.yaml: expected a mapping with name and model, found None"),
        (b"- 1", r"found \[1\]"),
        (b"word " * 1000, "found 'word word .{60,80}…$"),
        (b"a: [", "file.yaml: not YAML: "),
        (b"a: 2026-13-01", "file.yaml: not YAML: month must be"),
        (b"\xff\xfe\x00", "file.yaml: not YAML: "),
        (b"a: " + b"[" * 5000, "file.yaml: not YAML: maximum recursion"),
    ],
)
def test_what_is_no_mapping_is_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "file.yaml"
    path.write_bytes(content)
    with pytest.raises(StudyFileError, match=message) as raised:
        read_mapping(path, StudyFileError, "name and model")
    assert "\n" not in str(raised.value)


def test_a_folder_or_nothing_is_named(tmp_path: Path) -> None:
    with pytest.raises(StudyFileError, match=f"{tmp_path}: Is a directory; expected a YAML file with name"):
        read_mapping(tmp_path, StudyFileError, "name")
    with pytest.raises(StudyFileError, match=r"none.yaml: No such file or directory; expected a YAML file"):
        read_mapping(tmp_path / "none.yaml", StudyFileError, "name")
