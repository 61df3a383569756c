"""Whether a file that somebody names is one of keys, before anything is said of who may read it."""

from __future__ import annotations

import json
from pathlib import Path

from placement.errors import KeyFilesError

_MOST_BYTES = 1_000_000


def check_keys_file(path: Path) -> None:
    """Look at what is there; a file that is missing or cannot be read passes, since using it says more.

    Raises:
        KeyFilesError: it is something else. To be told to close it to other users would be no help then.
    """
    if not path.is_file():
        return
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES)
    except OSError:
        return
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict) or "keys" not in document:
        raise KeyFilesError(f"{path}: not a file of keys, expected one that `potluck keys add` made")
