"""What `torch.save` wrote, read without torch and without running anything that the file names.

A `.pt` file is a zip archive: `<root>/data.pkl` is a pickle that describes the objects, `<root>/data/<key>`
the bytes of each storage, `<root>/byteorder` their byte order. Python's unpickler would import and call
whatever the pickle names; here it is only read (plain_pickle.py), and of all names only those that torch
needs to rebuild a tensor mean anything.
"""

from __future__ import annotations

import math
import os
import sys
import zipfile
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from placement.errors import RoutingFileError
from placement.files.quote import quote
from placement.files.zip_archive import MOST_BYTES, check_member, open_zip, read_member
from placement.interop.plain_pickle import Name, RefusedError, interpret
from placement.units import size

_BFLOAT16 = "bfloat16"

# Names of torch, in pickles of storages (older) and of dtypes (newer), and the bytes they stand for.
_DTYPES = {
    "torch DoubleStorage": "f8",
    "torch FloatStorage": "f4",
    "torch HalfStorage": "f2",
    "torch BFloat16Storage": _BFLOAT16,
    "torch LongStorage": "i8",
    "torch IntStorage": "i4",
    "torch ShortStorage": "i2",
    "torch CharStorage": "i1",
    "torch ByteStorage": "u1",
    "torch BoolStorage": "?",
    "torch float64": "f8",
    "torch float32": "f4",
    "torch float16": "f2",
    "torch bfloat16": _BFLOAT16,
    "torch int64": "i8",
    "torch int32": "i4",
    "torch int16": "i2",
    "torch int8": "i1",
    "torch uint64": "u8",
    "torch uint32": "u4",
    "torch uint16": "u2",
    "torch uint8": "u1",
    "torch bool": "?",
}
_UNTYPED_STORAGE = "torch.storage UntypedStorage"
_REBUILD_TENSOR = "torch._utils _rebuild_tensor_v2"
_REBUILD_TENSOR_OF_DTYPE = "torch._utils _rebuild_tensor_v3"
_EMPTY_HOOKS = "collections OrderedDict"
_SIZE = "torch Size"
_NAMES = {*_DTYPES, _UNTYPED_STORAGE, _REBUILD_TENSOR, _REBUILD_TENSOR_OF_DTYPE, _EMPTY_HOOKS, _SIZE}

# A view may repeat its storage (stride 0); more elements than this only if the file holds them.
_MOST_REPEATED_ELEMENTS = 1 << 24


_EXPECTED = "one as torch.save writes since 1.6: save it again"
_MOST_PICKLE_BYTES = 2**26


@dataclass(frozen=True, slots=True)
class _Storage:
    dtype: str
    key: str


def load_torch_file(path: str | os.PathLike[str]) -> Any:
    """The object saved in a `.pt` file: dicts, lists, tuples, numbers, strings, and numpy arrays for tensors.

    Tensors of any device come as read-only arrays of their own dtype, bfloat16 as float32.

    Raises:
        RoutingFileError: unreadable, truncated, of the format before torch 1.6, or with anything else in it.
    """
    try:
        with open_zip(path, RoutingFileError, _EXPECTED) as archive:
            return _Reader(archive).load()
    except RefusedError as error:
        raise RoutingFileError(f"{path}: {error}") from error


class _Reader:
    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self._bytes_taken = 0
        pickles = [name for name in archive.namelist() if name.split("/")[1:] == ["data.pkl"]]
        if len(pickles) != 1:
            raise RefusedError("expected one <name>/data.pkl inside, as torch.save writes")
        self._root = pickles[0].split("/")[0]
        byte_order = f"{self._root}/byteorder"
        self._byte_order = "little"
        if byte_order in archive.namelist():
            self._byte_order = self._stored(byte_order).decode("ascii")
        if self._byte_order not in ("little", "big"):
            raise RefusedError(f"byteorder: expected little or big, found {self._byte_order!r}")
        self._storages: dict[_Storage, NDArray[Any]] = {}

    def load(self) -> Any:
        name = f"{self._root}/data.pkl"
        if self._archive.getinfo(name).file_size > _MOST_PICKLE_BYTES:
            raise RefusedError(f"{name}: larger than {size(_MOST_PICKLE_BYTES)}")
        pickled = self._stored(name)
        return interpret(bytes(pickled), names=_NAMES, call=self._call, persistent=self._storage)

    def _stored(self, name: str) -> bytearray:
        """Bytes of an entry. Not compressed, so that no small file can claim a large memory."""
        if name not in self._archive.NameToInfo:
            raise RefusedError(f"expected a file {quote(name)} inside, found none")
        entry = check_member(self._archive, name)
        if entry.compress_type != zipfile.ZIP_STORED:
            raise RefusedError(f"{quote(name)}: compressed, which torch.save never does")
        self._take(entry.file_size)
        return read_member(self._archive, entry)

    def _take(self, num_bytes: int) -> None:
        """Count memory: files in the archive may overlap, and tensors may share what they are made from."""
        self._bytes_taken += num_bytes
        if self._bytes_taken > MOST_BYTES:
            raise RefusedError(f"its tensors take more than {size(MOST_BYTES)}")

    @staticmethod
    def _storage(persistent_id: Any) -> _Storage:
        match persistent_id:
            case ("storage", Name(text=kind), str(key), str(), int()) if (
                kind in _DTYPES or kind == _UNTYPED_STORAGE
            ):
                return _Storage(_DTYPES.get(kind, "u1"), key)
        # What a pickle shares may be endless when it is written out.
        raise RefusedError(f"expected a storage, found a {type(persistent_id).__name__}")

    def _call(self, name: str, arguments: Any) -> Any:
        match name, arguments:
            case str(text), (_Storage() as storage, offset, shape, stride, *_) if text == _REBUILD_TENSOR:
                return self._tensor(storage, storage.dtype, offset, shape, stride)
            case str(text), (_Storage() as storage, offset, shape, stride, _, _, Name(text=dtype), *_) if (
                text == _REBUILD_TENSOR_OF_DTYPE and dtype in _DTYPES
            ):
                return self._tensor(storage, _DTYPES[dtype], offset, shape, stride)
            case str(text), () if text == _EMPTY_HOOKS:
                return {}
            case str(text), (tuple() as shape,) if text == _SIZE:
                return shape
        raise RefusedError(f"refused to call {name} with what the file gives it")

    def _tensor(self, storage: _Storage, dtype: str, offset: Any, shape: Any, stride: Any) -> NDArray[Any]:
        """`offset` and `stride` count elements of `dtype`, whatever type the storage was named with."""
        elements = self._elements(_Storage(dtype, storage.key))
        numbers = (offset, *shape, *stride) if isinstance(shape, tuple) and isinstance(stride, tuple) else ()
        if not numbers or len(shape) != len(stride) or any(type(n) is not int or n < 0 for n in numbers):
            raise RefusedError("tensor: offset, size or stride: expected whole numbers of at least 0")
        count = math.prod(shape)
        last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
        if count > 0 and last >= len(elements):
            raise RefusedError(
                f"tensor of shape {quote(list(shape))}: needs {last + 1} elements, its storage has "
                f"{len(elements)}"
            )
        if count > max(len(elements), _MOST_REPEATED_ELEMENTS):
            raise RefusedError(f"tensor of shape {quote(list(shape))}: {count} elements from {len(elements)}")
        if count == 0:
            view = np.empty(shape, dtype=elements.dtype)
        else:
            steps = [step * elements.itemsize for step in stride]
            view = np.lib.stride_tricks.as_strided(elements[offset:], shape, steps, writeable=False)
        if dtype == _BFLOAT16:
            self._take(2 * 4 * count)
            view = (view.astype(np.uint32) << 16).view(np.float32)
        view.flags.writeable = False
        return view

    def _elements(self, storage: _Storage) -> NDArray[Any]:
        if storage not in self._storages:
            data = self._stored(f"{self._root}/data/{storage.key}")
            dtype = np.dtype("u2" if storage.dtype == _BFLOAT16 else storage.dtype)
            elements = np.frombuffer(data, dtype=dtype, count=len(data) // dtype.itemsize)
            self._storages[storage] = elements.byteswap() if self._byte_order != sys.byteorder else elements
        return self._storages[storage]
