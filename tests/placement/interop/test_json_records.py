"""Objects of a JSON file, whole or line by line, in bounded memory; numbers as arrays."""

from __future__ import annotations

import json
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from placement.errors import RoutingFileError
from placement.interop.json_records import number_array, read_json_records

OBJECTS = st.lists(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5)), min_size=1)


@given(objects=OBJECTS, gap=st.sampled_from(["\n", "\n\n", "\r\n"]))
def test_objects_come_alike_from_a_list_and_from_lines(
    tmp_path_factory: pytest.TempPathFactory, objects: list[dict[str, object]], gap: str
) -> None:
    path = tmp_path_factory.mktemp("records") / "a.json"
    for text in (json.dumps(objects), json.dumps(objects, indent=1), gap.join(map(json.dumps, objects))):
        path.write_text(text, encoding="utf-8", newline="")
        assert [record for _, record in read_json_records(path)] == objects


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "a.json: expected JSON objects .*, found none"),
        (b"\n \n", "found none"),
        (b"[]", "found none"),
        (b'{"a": 1}\n[1]\n', "a.json:2: expected a JSON object, found"),
        (b'{"a": 1}\n{"b": \xff}\n', "a.json:2: not UTF-8 text .*at byte 6"),
        (b'{"a": 1}\n{"b": ' + b"[" * 5000 + b"}\n", "a.json:2: nested more than 64 deep"),
        (b'{"a": ' + b"[" * 500_000, "a.json: nested more than 64 deep"),
        (b"[" + b"0," * 10_000_001 + b"0]", "a.json: more than 10,000,000 values"),
    ],
)
def test_other_files_are_one_line(tmp_path: Path, text: bytes, message: str) -> None:
    (tmp_path / "a.json").write_bytes(text)
    with pytest.raises(RoutingFileError, match=message) as raised:
        list(read_json_records(tmp_path / "a.json"))
    assert "\n" not in str(raised.value)
    assert len(str(raised.value).removeprefix(str(tmp_path))) < 300


def test_one_line_at_a_time_is_in_memory(tmp_path: Path) -> None:
    line = json.dumps({"text": "x" * 1_000_000}) + "\n"
    with open(tmp_path / "a.jsonl", "w") as file:
        for _ in range(30):
            file.write(line)
    tracemalloc.start()
    assert sum(1 for _ in read_json_records(tmp_path / "a.jsonl")) == 30
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000_000


def test_a_pipe_or_a_device_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(RoutingFileError, match=r"it is a (pipe|device)"):
            list(read_json_records(path))


def test_numbers_become_an_array_of_their_shape() -> None:
    assert number_array([[1, 2], [3, 4]], "x").dtype == np.int64
    assert number_array([[1, 2.5]], "x").tolist() == [[1.0, 2.5]]
    assert number_array([], "x").shape == (0,)


@pytest.mark.parametrize(
    "value",
    [
        None,
        3,
        "text",
        [[1], [1, 2]],
        [[1], 2],
        [1, [2]],
        [True],
        ["1"],
        [None],
        [{}],
        [10**400],
        [[[[[[1]]]]]],
    ],
)
def test_anything_but_a_rectangle_of_numbers_is_refused(value: object) -> None:
    with pytest.raises(RoutingFileError, match="x: expected"):
        number_array(value, "x")
