"""Changes a file of API keys: whole or not at all, and one change after another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from orchestrator.api.keys import MOST_KEYS, MOST_NAME, ApiKey, is_name, read_keys, write_keys
from orchestrator.cluster.private_files import locked
from placement.errors import InputError, KeyFilesError
from placement.files.quote import quote

Keys = tuple[ApiKey, ...]


def change_keys(path: Path, change: Callable[[Keys], Keys]) -> None:
    """Replace a file's keys by what `change` makes of them; a file that is missing has none.

    Raises:
        KeyFilesError: it cannot be read or written, or is open to other users.
    """
    try:
        with locked(path.parent):
            # A link that leads nowhere is no missing file: reading it says what is wrong.
            is_there = path.exists() or path.is_symlink()
            write_keys(path, change(read_keys(path) if is_there else ()))
    except OSError as error:
        raise KeyFilesError(f"cannot write {path}: {error.strerror}") from error


def with_key(keys: Sequence[ApiKey], key: ApiKey) -> Keys:
    """The keys and a new one.

    Raises:
        InputError: its name is taken or none, or there are too many.
    """
    if not is_name(key.name):
        raise InputError(
            f"{quote(key.name)}: expected a name of 1 to {MOST_NAME} characters that can be printed"
        )
    if any(other.name == key.name for other in keys):
        raise InputError(f"{quote(key.name)} has a key already: choose another name, or remove it first")
    if len(keys) >= MOST_KEYS:
        raise InputError(f"the file has {MOST_KEYS:,} keys, and no more fit: remove some first")
    return (*keys, key)


def without_key(keys: Sequence[ApiKey], name: str) -> Keys:
    """The keys but the one of this name.

    Raises:
        InputError: nobody has this name, or it is the last one. A server takes no file without keys, since
            it could be read as leave for everybody.
    """
    left = tuple(key for key in keys if key.name != name)
    if len(left) == len(keys):
        names = ", ".join(quote(key.name) for key in keys[:10])
        verb = "have" if len(keys) > 1 else "has"
        raise InputError(f"{quote(name)} has no key in this file; {names or 'nobody'} {verb}")
    if not left:
        raise InputError(
            f"{quote(name)} has the file's only key, and a server takes no file without one: add another "
            "key first, or remove the file"
        )
    return left
