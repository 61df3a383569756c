"""Arrays of numpy files."""

from __future__ import annotations

import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from placement.errors import RoutingFileError


def load_numpy_file(path: str | os.PathLike[str]) -> NDArray[Any] | dict[str, NDArray[Any]]:
    """The array of a `.npy` file, or all arrays of a `.npz`, without unpickling.

    Raises:
        RoutingFileError: missing or unreadable.
    """
    if not Path(path).is_file():
        raise RoutingFileError(f"{path}: no such file")
    try:
        content = np.load(path, allow_pickle=False)
        if isinstance(content, np.ndarray):
            return content
        with content:
            return {name: content[name] for name in content.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise RoutingFileError(f"{path}: not a readable numpy file: {error}") from error
