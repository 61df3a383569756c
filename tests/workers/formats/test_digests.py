"""Digests of a model's bytes: any changed byte is found and named, whatever stopped the reading before."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.tiny.gguf_file import write_gguf
from placement.errors import CheckpointError
from tests.tiny_checkpoint import write_random_checkpoint
from tests.workers.formats.gguf_files import in_parts, trunk_and_mtp
from workers.formats.digests import (
    Changed,
    Digests,
    FileDigests,
    compare,
    current_digests,
    make_digests,
    places,
    read_digests,
    trunk_digest,
    write_digests,
)
from workers.formats.identity import compared, model_identity, told

RANGE_BYTES = 4096
NUM_TRUNK = 4


class Stopped(Exception):
    """Somebody ends the reading."""


def begun(range_bytes: int = RANGE_BYTES) -> Digests:
    """Nothing read yet; short ranges, so that a small model has many."""
    return Digests(range_bytes, ())


def no_saving(digests: Digests) -> None:
    del digests


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x80]))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(
        tmp_path_factory.mktemp("digests") / "m",
        seed=3,
        num_layers=NUM_TRUNK,
        moe_layers=(2, 3),
        num_experts=4,
        num_mtp_layers=1,
        num_shards=2,
        tokenizer=True,
    )


@pytest.fixture
def model(source: Path, tmp_path: Path) -> Path:
    return shutil.copytree(source, tmp_path / "m")


@given(data=st.data())
def test_a_changed_byte_anywhere_is_found_and_named(
    tmp_path_factory: pytest.TempPathFactory, source: Path, data: st.DataObject
) -> None:
    model = shutil.copytree(source, tmp_path_factory.mktemp("one") / "m")
    made = make_digests(model, begun(), no_saving)
    assert list(compare(model, made)) == []
    file = data.draw(st.sampled_from(made.files))
    offset = data.draw(st.integers(0, file.num_bytes - 1))
    path = model / file.name
    flip(path, offset)
    changed = list(compare(model, made))
    first = offset - offset % RANGE_BYTES
    assert changed == [Changed(file.name, first, min(first + RANGE_BYTES, file.num_bytes) - 1)]


def test_neighbours_are_told_as_one_stretch_and_a_cut_or_grown_file_by_what_is_gone_or_new(
    model: Path,
) -> None:
    made = make_digests(model, begun(), no_saving)
    weights = model / "model-00001-of-00002.safetensors"
    num_bytes = weights.stat().st_size
    flip(weights, RANGE_BYTES - 1)
    flip(weights, RANGE_BYTES)
    assert list(compare(model, made)) == [Changed(weights.name, 0, 2 * RANGE_BYTES - 1)]
    flip(weights, RANGE_BYTES - 1)
    flip(weights, RANGE_BYTES)
    with weights.open("ab") as file:
        file.write(b"more")
    grown = list(compare(model, made))
    assert grown[-1].last == num_bytes + 3
    assert {change.file for change in grown} == {weights.name}
    os.truncate(weights, RANGE_BYTES)
    assert list(compare(model, made)) == [Changed(weights.name, RANGE_BYTES, num_bytes - 1)]


def test_a_missing_file_of_weights_is_told_as_all_of_its_bytes(model: Path) -> None:
    made = make_digests(model, begun(), no_saving)
    weights = model / "model-00002-of-00002.safetensors"
    num_bytes = weights.stat().st_size
    weights.unlink()
    assert list(compare(model, made)) == [Changed(weights.name, 0, num_bytes - 1)]


def test_reading_goes_on_where_it_was_stopped(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "digests.json"
    stop_at = 150_000
    read: list[int] = []

    def stop(done: int, total: int) -> None:
        read.append(done)
        if done >= stop_at:
            raise Stopped

    with pytest.raises(Stopped):
        make_digests(model, begun(), lambda digests: write_digests(digests, path), stop)
    half = read_digests(path)
    assert not half.complete
    assert sum(len(file.ranges) for file in half.files) >= stop_at // RANGE_BYTES
    again: list[int] = []
    made = make_digests(
        model, half, lambda digests: write_digests(digests, path), lambda done, total: again.append(done)
    )
    assert again[0] > read[-1]
    assert made == read_digests(path) == make_digests(model, begun(), no_saving)
    assert made.complete


def test_what_was_read_of_a_file_that_was_written_to_since_is_read_again(model: Path, tmp_path: Path) -> None:
    half = make_digests(model, begun(), no_saving)
    flip(model / "tokenizer.json", 5000)
    os.utime(model / "tokenizer.json", ns=(1, 1))
    again = make_digests(model, half, no_saving)
    assert again.by_name["tokenizer.json"].ranges != half.by_name["tokenizer.json"].ranges
    assert again == make_digests(model, begun(), no_saving)


def test_they_lie_beside_the_model_and_count_as_long_as_nothing_is_written(model: Path) -> None:
    assert current_digests(model) is None
    path, _ = places(model)
    assert path == model / "potluck-digests.json"
    made = make_digests(model, None, lambda digests: write_digests(digests, path))
    assert current_digests(model) == made
    # Its own digests are no file of the model.
    assert "potluck-digests.json" not in made.by_name
    os.utime(model / "tokenizer.json", ns=(1, 1))
    assert current_digests(model) is None


def test_of_a_split_gguf_model_with_mtp_layers_every_file_is_read(source: Path, tmp_path: Path) -> None:
    write_gguf(source, tmp_path / "whole.gguf")
    trunk, mtp = trunk_and_mtp(tmp_path / "whole.gguf", tmp_path, NUM_TRUNK)
    parts = in_parts(trunk, tmp_path / "model", 2)
    made = make_digests(parts[1], begun(), no_saving)
    assert [file.name for file in made.files] == [*(part.name for part in parts), mtp.name]
    assert places(parts[0])[0] == places(parts[1])[0] == tmp_path / "model.potluck-digests.json"


def test_files_that_only_one_of_two_boxes_has_do_not_count(model: Path) -> None:
    whole = make_digests(model, begun(), no_saving)
    (model / "tokenizer.json").unlink()
    assert list(compare(model, whole)) == []


HEAD = '{"format": "potluck-digests", "version": 1, "range_bytes": 4096, "files": '
FILE = HEAD + '{"a": {"num_bytes": 1, "modified_ns": 1, "sha256": '


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "expected a JSON object"),
        ('{"format": "potluck-plan", "version": 1}', "format, version: expected 'potluck-digests', 1"),
        (HEAD.replace("4096", "5") + "{}}", "range_bytes: expected a multiple of 4096"),
        (HEAD + "{}}", "files: expected an object"),
        (HEAD + '{"../a": {}}}', "files of '../a': expected a file's name without a folder"),
        (HEAD + '{"a": {"num_bytes": -1}}}', "num_bytes: expected a whole number, found -1"),
        (FILE + '["x"]}}}', "expected 64 hexadecimal digits, found 'x'"),
        (FILE + '["x", "x"]}}}', "a digest for each 4,096 bytes"),
    ],
)
def test_damaged_digests_are_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "d.json").write_text(text)
    with pytest.raises(CheckpointError, match=message) as found:
        read_digests(tmp_path / "d.json")
    assert str(found.value).startswith(f"{tmp_path}/d.json: ")
    assert len(str(found.value).splitlines()) == 1


def test_digests_of_another_model_are_refused(model: Path) -> None:
    made = make_digests(model, begun(), no_saving)
    other = Digests(made.range_bytes, (FileDigests("x.gguf", 0, 0),))
    with pytest.raises(CheckpointError, match=r"it has none of the files x\.gguf"):
        list(compare(model, other))


def test_what_two_boxes_tell_of_their_files_is_compared_as_far_as_both_know_it(model: Path) -> None:
    identity = model_identity(model).hex
    assert trunk_digest(model) == ""
    before = told(identity, trunk_digest(model))
    write_digests(make_digests(model, None, lambda _: None), places(model)[0])
    after = told(identity, trunk_digest(model))
    assert before == identity
    assert [own == other for _, own, other in compared(before, after)] == [True]
    assert [own == other for _, own, other in compared(after, after)] == [True, True]
    other = told(identity, "0" * 64)
    assert [name for name, own, other in compared(after, other) if own != other] == [
        "bytes of the model files"
    ]
    assert list(compared("", after)) == []
