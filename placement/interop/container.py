"""How a file is packed, by what is in it: names are the user's own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from placement.errors import RoutingFileError
from placement.files import gguf_file
from placement.files.input_file import open_input
from placement.files.numpy_file import NPY_MAGIC
from placement.files.zip_archive import open_zip

Container = Literal["json", "torch", "npz", "npy", "gguf"]

_ZIP_MAGIC = b"PK"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_OF_SUFFIX: dict[str, Container] = {".json": "json", ".jsonl": "json", ".pt": "torch"}


def container_of(path: str | os.PathLike[str], expected: str) -> Container | None:
    """The container of a file: by its first bytes, or its name where they say nothing; None for no known one.

    Raises:
        RoutingFileError: no regular file, or a damaged archive.
    """
    with open_input(path, RoutingFileError, expected) as file:
        start = file.read(4096)
    if start.startswith(gguf_file.MAGIC):
        return "gguf"
    if start.startswith(NPY_MAGIC):
        return "npy"
    if start.startswith(_ZIP_MAGIC):
        # `.npz` and `.pt` are both zip archives; only the second holds a pickle.
        with open_zip(path, RoutingFileError, expected) as archive:
            return "torch" if any(name.endswith("data.pkl") for name in archive.namelist()) else "npz"
    if start.removeprefix(_BYTE_ORDER_MARK).lstrip()[:1] in (b"{", b"["):
        return "json"
    return _OF_SUFFIX.get(Path(path).suffix)
