"""GGUF, the file format of llama.cpp: header, key-value pairs, tensor list, tensor data.

Layout as documented in ggml-org/ggml, docs/gguf.md: little-endian; magic `GGUF`, uint32 version, uint64
number of tensors, uint64 number of pairs; a pair is key, uint32 type, value; a tensor is name, uint32 number
of dimensions, uint64 dimensions (innermost first), uint32 type, uint64 offset into the data, which starts at
the next multiple of `general.alignment` (32).
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from placement.errors import PotluckError
from placement.files.file_identity import FileIdentity
from placement.files.input_file import open_input
from placement.files.quote import quote
from placement.units import size

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_DEFAULT_ALIGNMENT = 32
FLOAT32 = 0
"""GGML's number of the type float32."""
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_LENGTH = struct.Struct("<Q")
_MOST_DIMENSIONS = 4
# A model's header with its tokenizer takes some ten megabytes, with 300,000 texts.
_MOST_HEADER_BYTES, _MOST_VALUES = 2**27, 2_000_000
_READ_AHEAD_BYTES = 2**16
_MOST_FLOATS = 2**24
_AGAIN = "the file is cut off or damaged, download or copy it again"

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """`shape` outermost first, as numpy has it; `type` is GGML's number; `offset` into the data, in bytes."""

    shape: tuple[int, ...]
    type: int
    offset: int


class GgufTexts(Sequence[str]):
    """An array of texts as it lies in the header: a tokenizer has 250,000, which most readers never look at.

    Bytes that are no UTF-8 become replacement characters.
    """

    __slots__ = ("_length", "_packed", "_texts")

    def __init__(self, packed: bytes, length: int) -> None:
        """`packed`: each text behind its length as uint64."""
        self._packed = packed
        self._length = length
        self._texts: list[str] | None = None

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[str]:
        return iter(self._decoded())

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        return self._decoded()[index]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GgufTexts) and self._packed == other._packed

    def __hash__(self) -> int:
        return hash(self._packed)

    def __repr__(self) -> str:
        return f"{self._length} texts"

    def _decoded(self) -> list[str]:
        if self._texts is None:
            packed, position, texts = self._packed, 0, []
            for _ in range(self._length):
                begin = position + 8
                position = begin + int.from_bytes(packed[position:begin], "little")
                texts.append(packed[begin:position].decode("utf-8", errors="replace"))
            self._texts = texts
        return self._texts


@dataclass(frozen=True, slots=True)
class GgufFile:
    """The header of a GGUF file; tensor data stay on disk until asked for.

    Attributes:
        error: what complaints about the file are raised as.
        metadata: key -> a number, bool or text, a list of them, or `GgufTexts`.
        data_offset: where in the file tensor data begin.
        identity: of the file whose header this is.
    """

    path: Path
    error: type[PotluckError]
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]
    alignment: int
    data_offset: int
    identity: FileIdentity

    @property
    def num_bytes(self) -> int:
        """Of the whole file."""
        return self.identity.num_bytes

    @classmethod
    def open(cls, path: str | os.PathLike[str], error: type[PotluckError]) -> GgufFile:
        """Read the header.

        Raises:
            error: missing, not GGUF, another version, big-endian, truncated, or a name that occurs twice.
        """
        with open_input(path, error, "a GGUF file") as file:
            identity = FileIdentity.of(file.fileno())
            num_bytes = identity.num_bytes
            if num_bytes < 24:
                raise error(f"{path}: too short for a GGUF file: {num_bytes} bytes; {_AGAIN}")
            cursor = _Cursor(file, num_bytes, Path(path), error)
            if cursor.bytes(4) != MAGIC:
                raise error(
                    f"{path}: not a GGUF file: expected it to begin with GGUF; give another, or download "
                    "it again"
                )
            version = cursor.scalar("I")
            if version not in _VERSIONS:
                big_endian = version in [v << 24 for v in _VERSIONS]
                found = "a big-endian file" if big_endian else f"version {version}"
                raise error(
                    f"{path}: expected a little-endian GGUF of version 2 or 3, found {found}; "
                    "convert it again"
                )
            num_tensors, num_pairs = cursor.scalar("Q"), cursor.scalar("Q")
            metadata = cursor.named(num_pairs, "key-value pairs", cursor.value)
            tensors = cursor.named(num_tensors, "tensors", cursor.tensor)
            alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
            if isinstance(alignment, bool) or not isinstance(alignment, int) or alignment < 1:
                raise error(
                    f"{path}: general.alignment is {quote(alignment)}, expected a positive number: {_AGAIN}"
                )
            data_offset = -(-cursor.position // alignment) * alignment
            return cls(Path(path), error, metadata, tensors, alignment, data_offset, identity)

    def float32(self, name: str, expected: str, most_values: int = _MOST_FLOATS) -> NDArray[np.float32]:
        """A float32 tensor's values.

        Args:
            expected: what it holds, such as "counts of experts", for the message that it is too large.

        Raises:
            error: no such tensor, another type, or cut off.
        """
        where = f"{self.path}: {quote(name)}"
        tensor = self.tensors.get(name)
        if tensor is None:
            raise self.error(f"{self.path}: expected a tensor {name}")
        if tensor.type != FLOAT32:
            raise self.error(f"{where}: expected float32, found GGML type {tensor.type}: {_AGAIN}")
        start, count = self.data_offset + tensor.offset, math.prod(tensor.shape)
        if count > most_values:
            raise self.error(f"{where}: takes {size(4 * count)}, expected {expected}")
        with open_input(self.path, self.error, "a GGUF file") as file:
            content = b""
            # Where a header says it is may be past any place that a file has.
            if start + 4 * count <= os.fstat(file.fileno()).st_size:
                try:
                    file.seek(start)
                    content = file.read(4 * count)
                except OSError as found:
                    raise self.error(
                        f"{where}: cannot be read: {found.strerror}; check the disk and the file"
                    ) from found
        if len(content) < 4 * count:
            raise self.error(f"{where}: cut off; expected {size(4 * count)} at byte {start:,}")
        return np.frombuffer(content, dtype="<f4").reshape(tensor.shape).astype(np.float32)


class _Cursor:
    """Reads forward; a length that the file cannot hold is an error before anything is allocated.

    The file may have holes, which take no room on disk: so there are limits besides its size.
    """

    def __init__(self, file: BinaryIO, num_bytes: int, path: Path, error: type[PotluckError]) -> None:
        self._file = file
        self._num_bytes = num_bytes
        self._path = path
        self._error = error
        self._num_values = 0
        # The file's first bytes, read ahead in growing parts: a header has 500,000 small fields.
        self._start = b""
        self.position = 0

    def bytes(self, count: int) -> bytes:
        begin = self._advance(count)
        return self._start[begin : self.position]

    def scalar(self, code: str) -> Any:
        return self._unpacked("<" + code)[0]

    def text(self) -> str:
        return self.bytes(self.scalar("Q")).decode("utf-8", errors="replace")

    def texts(self, count: int) -> GgufTexts:
        first = position = self.position
        start, num_read = self._start, len(self._start)
        for _ in range(count):
            if position + 8 > num_read:
                self._read_on(position + 8)
                start, num_read = self._start, len(self._start)
            position += 8 + _LENGTH.unpack_from(start, position)[0]
        self._advance(position - first)
        return GgufTexts(self._start[first:position], count)

    def named(self, count: int, what: str, read: Callable[[str], Value]) -> dict[str, Value]:
        """`count` names, each with what `read`, which is told the name, finds behind it."""
        self._count(count, what)
        found: dict[str, Value] = {}
        for _ in range(count):
            name = self.text()
            if name in found:
                raise self._error(
                    f"{self._path}: {quote(name)} occurs twice among its {what}, expected once: {_AGAIN}"
                )
            found[name] = read(name)
        return found

    def value(self, key: str) -> Any:
        kind = self.scalar("I")
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            return self._numbers(key, kind, 1)[0]
        item_kind, count = self.scalar("I"), self.scalar("Q")
        self._count(count, f"array items of {quote(key)}")
        return self.texts(count) if item_kind == _STRING else self._numbers(key, item_kind, count)

    def tensor(self, name: str) -> GgufTensor:
        num_dimensions = self.scalar("I")
        if num_dimensions > _MOST_DIMENSIONS:
            raise self._error(
                f"{self._path}: tensor {quote(name)} has {num_dimensions} dimensions, expected at most "
                f"{_MOST_DIMENSIONS}: {_AGAIN}"
            )
        dimensions = [self.scalar("Q") for _ in range(num_dimensions)]
        return GgufTensor(tuple(reversed(dimensions)), self.scalar("I"), self.scalar("Q"))

    def _advance(self, count: int) -> int:
        """Move past `count` bytes and see that they are there; returns where they begin."""
        begin, end = self.position, self.position + count
        if end > len(self._start):
            self._read_on(end)
        self.position = end
        return begin

    def _read_on(self, end: int) -> None:
        if end > self._num_bytes:
            raise self._error(
                f"{self._path}: cut off at byte {self._num_bytes:,}; expected {end:,} or more: {_AGAIN}"
            )
        if end > _MOST_HEADER_BYTES:
            raise self._error(
                f"{self._path}: its header takes more than {size(_MOST_HEADER_BYTES)}, expected less: "
                f"{_AGAIN}"
            )
        missing = max(end, 2 * len(self._start), _READ_AHEAD_BYTES) - len(self._start)
        try:
            self._start += self._file.read(missing)
        except OSError as found:
            raise self._error(
                f"{self._path}: its header cannot be read: {found.strerror}; check the disk and the file"
            ) from found
        if len(self._start) < end:
            raise self._error(f"{self._path}: it changed while it was read; try again when it is whole")

    def _count(self, count: int, what: str) -> None:
        if count > self._num_bytes:
            raise self._error(f"{self._path}: claims {count:,} {what} in {size(self._num_bytes)}: {_AGAIN}")
        self._num_values += count
        if self._num_values > _MOST_VALUES:
            raise self._error(
                f"{self._path}: its header has more than {_MOST_VALUES:,} values, expected fewer: {_AGAIN}"
            )

    def _numbers(self, key: str, kind: int, count: int) -> list[Any]:
        if kind not in _SCALARS:
            raise self._error(
                f"{self._path}: {quote(key)} has unknown value type {kind} at byte {self.position:,}: "
                f"{_AGAIN}"
            )
        return list(self._unpacked(f"<{count}{_SCALARS[kind]}"))

    def _unpacked(self, layout: str) -> tuple[Any, ...]:
        begin = self._advance(struct.calcsize(layout))
        return struct.unpack_from(layout, self._start, begin)
