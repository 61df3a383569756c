"""Any file at all in place of one of YAML: the mapping in it, or one line of the reader's own error."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from placement.errors import StudyFileError
from placement.fields.yaml_file import read_mapping


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "file.yaml: .*found nothing"),
        (b"- 1", r"found \[1\]"),
        (b"word " * 1000, "found 'word word .{60,80}…$"),
        (b"a: [", "file.yaml: not YAML: "),
        (b"a: 2026-13-01", "file.yaml: line 1: '2026-13-01' is no timestamp"),
        (b"\xff\xfe\x00", "file.yaml: not UTF-8 text"),
        (b"a: " + b"[" * 100, "file.yaml: line 1: nested more than 64 deep"),
        (b"a: " + b"[" * 400_000, "file.yaml: .*(nested more than 64 deep|maximum nesting depth)"),
        (b"\n".join(b" " * depth + b"a:" for depth in range(900)), "line 65: nested more than 64 deep"),
        (b"a: 1\nb:\n  c: 2\na: 3\n", "file.yaml: line 4: key 'a' again, first given in line 1: keep one"),
        (b"b: [{c: 2, c: 3}]", "line 1: key 'c' again, first given in line 1"),
        (b"x: &x {c: 2, 'c': 3}\ny: *x", "line 1: key 'c' again"),
        (b"a: &a [*a]", r"line 1: more than 100,000 values, with what aliases \(\*\) repeat"),
        (b"a: *" + b"z" * 5000, "not YAML: found undefined alias"),
        (b"a: !!python/object/apply:os.system [ls]", "not YAML: could not determine a constructor"),
        (b"a: " + b"x" * 70_000, "line 1: a text of more than 65,536 characters"),
        (b"a: [" + b"1," * 200_000 + b"]", "line 1: more than 100,000 values"),
        (b"# " + b"x" * 1_000_000, "file.yaml: larger than 1.0 MB; expected a YAML file with name and model"),
        (b"a: 1\n--- \nb: 2", "not YAML: but found another document, line 2"),
    ],
)
def test_what_is_no_mapping_is_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "file.yaml"
    path.write_bytes(content)
    with pytest.raises(StudyFileError, match=message) as raised:
        read_mapping(path, StudyFileError, "name and model")
    assert "\n" not in str(raised.value)
    assert len(str(raised.value).removeprefix(str(tmp_path))) < 250


def test_aliases_that_multiply_are_refused_before_anything_is_built(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 10)}]" for i in range(9)]
    (tmp_path / "file.yaml").write_text("\n".join(lines))
    tracemalloc.start()
    with pytest.raises(StudyFileError, match=r"file.yaml: line 5: more than 100,000 values"):
        read_mapping(tmp_path / "file.yaml", StudyFileError, "name")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000


def test_merges_that_multiply_are_refused(tmp_path: Path) -> None:
    lines = ["m0: &m0 {a: 1, b: 2, c: 3}"]
    lines += [f"m{i + 1}: &m{i + 1} {{<<: [{', '.join([f'*m{i}'] * 20)}]}}" for i in range(6)]
    (tmp_path / "file.yaml").write_text("\n".join(lines))
    with pytest.raises(StudyFileError, match=r"file.yaml: line \d: more than 100,000 values"):
        read_mapping(tmp_path / "file.yaml", StudyFileError, "name")


def test_anchors_and_merges_as_people_use_them_are_read(tmp_path: Path) -> None:
    (tmp_path / "file.yaml").write_text(
        "ram: &ram {kind: ram, speed: 40}\n"
        "boxes:\n"
        "  - {<<: *ram, name: a}\n"
        "  - {<<: *ram, name: b, speed: 60}\n"
        "  - {<<: [*ram, {price: 3}], name: c}\n"
        "again: *ram\n"
    )
    read = read_mapping(tmp_path / "file.yaml", StudyFileError, "boxes")
    ram = {"kind": "ram", "speed": 40}
    assert read["boxes"] == [
        {**ram, "name": "a"},
        {**ram, "name": "b", "speed": 60},
        {**ram, "name": "c", "price": 3},
    ]
    assert read["again"] == ram


documents = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda values: st.lists(values, max_size=4) | st.dictionaries(st.text(max_size=8), values, max_size=4),
    max_leaves=20,
)


@given(document=st.dictionaries(st.text(max_size=8), documents, max_size=4), flow=st.booleans())
def test_what_people_write_is_read_as_yaml_reads_it(
    tmp_path_factory: pytest.TempPathFactory, document: dict[str, Any], flow: bool
) -> None:
    path = tmp_path_factory.mktemp("yaml") / "file.yaml"
    path.write_text(yaml.safe_dump(document, default_flow_style=flow), encoding="utf-8")
    assert read_mapping(path, StudyFileError, "keys") == document


def test_a_pipe_or_a_device_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(StudyFileError, match=r"it is a (pipe|device).*expected a YAML file with name"):
            read_mapping(path, StudyFileError, "name")


def test_a_folder_or_nothing_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        StudyFileError, match=f"{tmp_path}: it is a directory; expected a YAML file with name"
    ):
        read_mapping(tmp_path, StudyFileError, "name")
    with pytest.raises(StudyFileError, match=r"none.yaml: No such file or directory; expected a YAML file"):
        read_mapping(tmp_path / "none.yaml", StudyFileError, "name")


@pytest.mark.parametrize(
    "value",
    [
        "!!bool maybe",
        '!!int ""',
        '!!int "+"',
        '!!float ""',
        '!!float "_"',
        "!!timestamp x",
        "59:" * 9999 + "5.5",
    ],
)
def test_a_value_that_is_not_what_its_tag_says_is_refused_with_its_line(tmp_path: Path, value: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(f"a: 1\nb: {value}\n")
    with pytest.raises(StudyFileError, match=r"line 2: .* is no (bool|int|float|timestamp)") as caught:
        read_mapping(path, StudyFileError, "a and b")
    assert len(str(caught.value)) < len(str(path)) + 200
