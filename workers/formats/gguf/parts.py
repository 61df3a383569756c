"""The files that hold one GGUF model: one, the parts of a split one, or the trunk's and the MTP layers'."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from placement.errors import CheckpointError
from placement.files.gguf_file import GgufFile, GgufTensor
from placement.files.quote import one_line, quote

# As llama.cpp names them (llama_split_path): part 1 has number 0.
_PART_NAME = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.ASCII | re.DOTALL)


@dataclass(frozen=True, slots=True)
class PlacedTensor:
    """A tensor and the file that it lies in."""

    file: GgufFile
    stored: GgufTensor


@dataclass(frozen=True, slots=True)
class GgufParts:
    """The headers of a model's files, as if they were one.

    Attributes:
        path: the file that was asked for, for messages.
        metadata: of the first part; the others repeat what a reader needs to find the parts.
        files: all of them in the order of their numbers, also one without tensors.
    """

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, PlacedTensor]
    files: tuple[GgufFile, ...]

    @classmethod
    def open(cls, path: str | Path) -> GgufParts:
        """Read the header of a file, and where it is one part of several those of all parts.

        Raises:
            CheckpointError: as `GgufFile.open`; a part is missing, or belongs to another model or place.
        """
        path = Path(path)
        file = _open_asked(path)
        count = _number(file, "split.count", default=0)
        if count <= 1:
            return cls(path, file.metadata, _placed(file), (file,))
        files = [file if part == path else _open_part(part, path) for part in _part_paths(path, count)]
        tensors: dict[str, PlacedTensor] = {}
        for number, part in enumerate(files):
            _check_part(part, number, count, files[0])
            for name, placed in _placed(part).items():
                if name in tensors:
                    raise CheckpointError(
                        f"{part.path}: tensor {quote(name)} is in {tensors[name].file.path.name} too; "
                        f"expected the {count} parts of one model: download them again"
                    )
                tensors[name] = placed
        expected = _number(files[0], "split.tensors.count")
        if len(tensors) != expected:
            raise CheckpointError(
                f"{path}: its {count} parts have {len(tensors)} tensors, expected {expected} as "
                "split.tensors.count says: they are not of one model, download them again"
            )
        return cls(path, files[0].metadata, tensors, tuple(files))

    def float32(self, name: str, expected: str, most_values: int) -> NDArray[np.float32]:
        """See `GgufFile.float32`; the tensor must be there."""
        return self.tensors[name].file.float32(name, expected, most_values)


def whole_name(path: Path) -> str:
    """A GGUF file's name without its ending, and without which part of a split model it is."""
    found = _PART_NAME.fullmatch(path.name)
    return found["stem"] if found is not None else path.name.removesuffix(".gguf")


def is_later_part(path: Path) -> bool:
    """Whether a file's name says that it is a part of a split model other than the first."""
    found = _PART_NAME.fullmatch(path.name)
    return found is not None and int(found["number"]) != 1


def _placed(file: GgufFile) -> dict[str, PlacedTensor]:
    return {name: PlacedTensor(file, tensor) for name, tensor in file.tensors.items()}


def _part_paths(path: Path, count: int) -> list[Path]:
    found = _PART_NAME.fullmatch(path.name)
    if found is None or int(found["count"]) != count:
        raise CheckpointError(
            f"{path}: it is a part of a model in {count} files; expected it to be called "
            f"NAME-00001-of-{count:05}.gguf or so, as it was published, with the other parts beside it"
        )
    return [
        path.with_name(f"{found['stem']}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1)
    ]


def _open_asked(path: Path) -> GgufFile:
    try:
        return GgufFile.open(path, CheckpointError)
    except CheckpointError as error:
        if _PART_NAME.fullmatch(path.name) is None or path.exists():
            raise
        raise CheckpointError(f"{error}: it is called as a part of a split model, which needs all") from None


def _open_part(part: Path, asked: Path) -> GgufFile:
    try:
        return GgufFile.open(part, CheckpointError)
    except CheckpointError as error:
        raise CheckpointError(f"{error}: {asked.name} is a part of the same model, which needs all") from None


def _check_part(part: GgufFile, number: int, count: int, first: GgufFile) -> None:
    """Whether a part says that it is what its name says, and nothing else than the first.

    Parts carry no name of their model: one of a model with the same sizes and types, such as another training
    of it, looks alike (docs/model.md).
    """
    for key, number_expected in (
        ("split.no", number),
        ("split.count", count),
        ("split.tensors.count", _number(first, "split.tensors.count")),
    ):
        found = _number(part, key)
        if found != number_expected:
            raise CheckpointError(
                f"{part.path}: {key} is {found}, expected {number_expected}: it is another part, or one of "
                "another model; download it again"
            )
    # Usual writers put all else into the first part. Where another part says it too, they must agree.
    for key, value in part.metadata.items():
        expected = first.metadata.get(key, value)
        if not key.startswith("split.") and value != expected:
            raise CheckpointError(
                f"{part.path}: {one_line(key)} is {quote(value)}, expected {quote(expected)} as in "
                f"{first.path.name}: it is a part of another model; download it again"
            )


# llama.cpp keeps a part's number in 16 bits.
_MOST_PARTS = 2**16 - 1


def _number(file: GgufFile, key: str, default: int | None = None) -> int:
    value = file.metadata.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31:
        raise CheckpointError(
            f"{file.path}: {key} is {quote(value)}, expected a whole number, as every part of a split model "
            "has: download it again"
        )
    if key == "split.count" and value > _MOST_PARTS:
        raise CheckpointError(f"{file.path}: split.count is {value}, expected at most {_MOST_PARTS}")
    return value
