"""Digests of every byte of a model's files, in a small file beside them: a changed byte is found and named.

They are made once, while nothing is known to be wrong, and compared later or on another box. Making them
reads all of the model, so it may be interrupted and goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from placement.errors import CheckpointError
from placement.files.atomic import replacing
from placement.files.file_identity import FileIdentity
from placement.files.json_file import expect_object, read_json
from placement.files.quote import quote
from workers.disk.direct_file import ALIGNMENT, DirectFile
from workers.formats.gguf.model import find_gguf
from workers.formats.gguf.parts import whole_name
from workers.formats.identity import model_files
from workers.formats.open_model import is_gguf

RANGE_BYTES = 2**23
"""What one digest is of: 200 GB have 24,000 of them, in a file of 1.6 MB."""
ENDING = "potluck-digests.json"
_FORMAT, _VERSION = "potluck-digests", 1
_EXPECTED = "digests that `potluck verify` wrote"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MOST_BYTES, _MOST_VALUES = 2**28, 2**22
_MOST_RANGE_BYTES = 2**30
_SAVE_EVERY_BYTES = 2**30
# What a directory's model is read from besides config.json and weights, such as its tokenizer.
_TEXTS = ("*.json", "*.jinja")

OnProgress = Callable[[int, int], None]
Save = Callable[["Digests"], None]


@dataclass(frozen=True, slots=True)
class FileDigests:
    """One file's digests, of its ranges from the first on; fewer than it has where nobody read on.

    Attributes:
        modified_ns: when it was written last, as its digests were made.
    """

    name: str
    num_bytes: int
    modified_ns: int
    ranges: tuple[str, ...] = ()

    def is_whole(self, range_bytes: int) -> bool:
        """Whether all of the file has been read."""
        return len(self.ranges) == -(-self.num_bytes // range_bytes)


@dataclass(frozen=True, slots=True)
class Digests:
    """SHA-256 of each range of a model's files.

    Attributes:
        range_bytes: of a range; a file's last one may be shorter.
        files: in the order in which they are read.
    """

    range_bytes: int
    files: tuple[FileDigests, ...]

    @property
    def complete(self) -> bool:
        """Whether every file was read to its end."""
        return all(file.is_whole(self.range_bytes) for file in self.files)

    @property
    def num_bytes(self) -> int:
        """Of all files."""
        return sum(file.num_bytes for file in self.files)

    @property
    def by_name(self) -> Mapping[str, FileDigests]:
        return {file.name: file for file in self.files}


@dataclass(frozen=True, slots=True)
class Changed:
    """Bytes `first` to `last` of a file, both included, that are not what they were."""

    file: str
    first: int
    last: int

    def __str__(self) -> str:
        return f"{self.file}: bytes {self.first:,} to {self.last:,}"


def places(model: str | Path) -> tuple[Path, Path]:
    """Where a model's digests may lie: beside it, or in this user's cache where that cannot be written."""
    real = Path(model).resolve()
    beside = real.with_name(f"{whole_name(real)}.{ENDING}") if is_gguf(model) else real / ENDING
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = f"{hashlib.sha256(os.fsencode(beside)).hexdigest()[:16]}.json"
    return beside, cache / "potluck" / "digests" / name


def known_digests(model: str | Path) -> tuple[Path, Digests] | None:
    """A model's digests and where they lie, None where nobody made any.

    Raises:
        CheckpointError: there are some, but damaged.
    """
    for path in places(model):
        if os.path.lexists(path):
            return path, read_digests(path)
    return None


def current_digests(model: str | Path) -> Digests | None:
    """A model's digests where they are complete and no file was written to since; nothing large is read.

    Raises:
        CheckpointError: a file of the model is missing, or the digests are damaged.
    """
    known = known_digests(model)
    if known is None or not known[1].complete:
        return None
    return known[1] if [replace(file, ranges=()) for file in known[1].files] == _found(model) else None


def trunk_digest(model: str | Path) -> str:
    """One digest of all bytes of a model's trunk, the same whatever its files are called.

    "" where its digests are not complete, older than a file, of ranges of another size, or damaged. Nothing
    large is read.
    """
    try:
        known = current_digests(model)
        names = [file.path.name for file in model_files(model)]
    except (CheckpointError, OSError):
        return ""
    if known is None or known.range_bytes != RANGE_BYTES or not known.by_name.keys() >= set(names):
        return ""
    ranges = [digest for name in names for digest in known.by_name[name].ranges]
    return hashlib.sha256("\n".join(ranges).encode()).hexdigest()


def read_digests(path: str | Path) -> Digests:
    """Read a file of digests.

    Raises:
        CheckpointError: it is none, or damaged; names file and field.
    """
    document = expect_object(
        read_json(path, CheckpointError, _EXPECTED, most_bytes=_MOST_BYTES, most_values=_MOST_VALUES),
        CheckpointError,
        str(path),
    )
    if (document.get("format"), document.get("version")) != (_FORMAT, _VERSION):
        raise CheckpointError(f"{path}: format, version: expected {_FORMAT!r}, {_VERSION}; {_EXPECTED}")
    range_bytes = document.get("range_bytes")
    if type(range_bytes) is not int or not 0 < range_bytes <= _MOST_RANGE_BYTES or range_bytes % ALIGNMENT:
        raise CheckpointError(
            f"{path}: range_bytes: expected a multiple of {ALIGNMENT} up to {_MOST_RANGE_BYTES:,}, found "
            f"{quote(range_bytes)}"
        )
    files = document.get("files")
    if not isinstance(files, dict) or not files:
        raise CheckpointError(f"{path}: files: expected an object of file names; {_EXPECTED}")
    found = (_file_of(path, name, fields, range_bytes) for name, fields in files.items())
    return Digests(range_bytes, tuple(found))


def write_digests(digests: Digests, path: str | Path) -> None:
    """Write JSON; an existing file is replaced in one step."""
    lines = [
        f"  {json.dumps(file.name)}: "
        + json.dumps({"num_bytes": file.num_bytes, "modified_ns": file.modified_ns, "sha256": file.ranges})
        for file in digests.files
    ]
    head = f'"format": "{_FORMAT}", "version": {_VERSION}, "range_bytes": {digests.range_bytes}'
    with replacing(path) as to:
        to.write(("{" + head + ', "files": {\n' + ",\n".join(lines) + "\n}}\n").encode())


def make_digests(
    model: str | Path, known: Digests | None, save: Save, on_progress: OnProgress | None = None
) -> Digests:
    """Read the model and note its digests; what `known` has of files not written to since is not read again.

    Args:
        known: of an earlier reading that was interrupted.
        save: called now and then, and where this reading is interrupted.

    Raises:
        CheckpointError: a file is missing or damaged.
        ModelFilesFailed: a disk does not give its bytes.
    """
    old = known.by_name if known is not None else {}
    range_bytes = known.range_bytes if known is not None else RANGE_BYTES
    files = []
    for file in _found(model):
        kept = old.get(file.name)
        files.append(kept if kept is not None and replace(kept, ranges=()) == file else file)
    made = Digests(range_bytes, tuple(files))
    paths = {path.name: path for path in _paths(model)}
    done = sum(min(len(file.ranges) * range_bytes, file.num_bytes) for file in files)
    saved = done
    try:
        for index, file in enumerate(files):
            for digest, num_bytes in _ranges(paths[file.name], range_bytes, len(file.ranges)):
                file = replace(file, ranges=(*file.ranges, digest))
                made = replace(made, files=(*made.files[:index], file, *made.files[index + 1 :]))
                done += num_bytes
                if on_progress is not None:
                    on_progress(done, made.num_bytes)
                if done - saved >= _SAVE_EVERY_BYTES:
                    save(made)
                    saved = done
    finally:
        save(made)
    return made


def compare(model: str | Path, expected: Digests, on_progress: OnProgress | None = None) -> Iterator[Changed]:
    """Read the model and give every stretch of bytes that is not as expected.

    Neither side's headers are looked at, so that a damaged one is found like any other byte. A text that only
    one of the two has does not count: another box may do without a tokenizer.

    Raises:
        CheckpointError: no file of the model is among those expected.
        ModelFilesFailed: a disk does not give its bytes.
    """
    folder = Path(model).parent if is_gguf(model) else Path(model)
    paths = {file.name: folder / file.name for file in expected.files if (folder / file.name).is_file()}
    if not paths:
        raise CheckpointError(
            f"{model}: it has none of the files {', '.join(file.name for file in expected.files[:3])}; "
            "expected digests of this model"
        )
    done, total = 0, sum(map(os.path.getsize, paths.values()))
    for file in expected.files:
        if file.name not in paths:
            if _is_needed(file.name):
                yield Changed(file.name, 0, file.num_bytes - 1)
            continue
        found = os.path.getsize(paths[file.name])
        changed: list[tuple[int, int]] = []
        position = 0
        # The digests end where somebody stopped reading; the sizes tell what is behind.
        last_known = min(len(file.ranges) * expected.range_bytes, file.num_bytes)
        for number, (digest, num_bytes) in enumerate(_ranges(paths[file.name], expected.range_bytes)):
            if number < len(file.ranges) and digest != file.ranges[number]:
                changed.append((position, position + num_bytes - 1))
            position += num_bytes
            done += num_bytes
            if on_progress is not None:
                on_progress(done, total)
            if position >= last_known:
                break
        if found != file.num_bytes:
            changed.append((min(found, file.num_bytes), max(found, file.num_bytes) - 1))
        for first, last in _joined(changed):
            yield Changed(file.name, first, last)


def _is_needed(name: str) -> bool:
    """Whether a model's file may not be missing."""
    return name.endswith((".safetensors", ".gguf")) or name == "config.json"


def _joined(ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Ranges that touch or overlap as one; they come in the order of their first bytes."""
    before: tuple[int, int] | None = None
    for first, last in ranges:
        if before is not None and first <= before[1] + 1:
            before = before[0], max(before[1], last)
            continue
        if before is not None:
            yield before
        before = first, last
    if before is not None:
        yield before


def _ranges(path: Path, range_bytes: int, skipped: int = 0) -> Iterator[tuple[str, int]]:
    """Digest and bytes of each range of a file, behind the first `skipped` ones, read past the page cache."""
    file = DirectFile(path)
    try:
        # Memory of its own pages is aligned as reads past the page cache want it.
        with mmap.mmap(-1, range_bytes) as room, memoryview(room) as buffer:
            offset = skipped * range_bytes
            while num_bytes := file.read(buffer, offset):
                yield hashlib.sha256(buffer[:num_bytes]).hexdigest(), num_bytes
                offset += num_bytes
                if num_bytes < range_bytes:
                    break
    finally:
        file.close()


def _paths(model: str | Path) -> Sequence[Path]:
    """All files that a run reads: those of the trunk, and a GGUF file's MTP layers or a directory's texts."""
    paths = [file.path for file in model_files(model)]
    if is_gguf(model):
        mtp = find_gguf(model).mtp_path
        return paths if mtp is None else [*paths, mtp]
    texts = {path for pattern in _TEXTS for path in Path(model).glob(pattern) if path.is_file()}
    return [*paths, *sorted(path for path in texts - set(paths) if path.name != ENDING)]


def _found(model: str | Path) -> list[FileDigests]:
    """The model's files as they are now, nothing read."""
    found = []
    for path in _paths(model):
        identity = FileIdentity.of(path)
        found.append(FileDigests(path.name, identity.num_bytes, identity.modified_ns))
    return found


def _file_of(path: str | Path, name: str, fields: Any, range_bytes: int) -> FileDigests:
    where = f"{path}: files of {quote(name)}"
    # It is looked for in the model's folder, and nowhere else.
    if os.path.basename(name) != name or name in ("", ".", ".."):
        raise CheckpointError(f"{where}: expected a file's name without a folder")
    if not isinstance(fields, dict):
        raise CheckpointError(f"{where}: expected an object; {_EXPECTED}")
    num_bytes, modified_ns = (
        _number(fields.get(key), f"{where}: {key}") for key in ("num_bytes", "modified_ns")
    )
    ranges = fields.get("sha256")
    if not isinstance(ranges, list) or len(ranges) > -(-num_bytes // range_bytes):
        raise CheckpointError(f"{where}: sha256: expected a list, a digest for each {range_bytes:,} bytes")
    for digest in ranges:
        if not isinstance(digest, str) or _SHA256.fullmatch(digest) is None:
            raise CheckpointError(f"{where}: sha256: expected 64 hexadecimal digits, found {quote(digest)}")
    return FileDigests(name, num_bytes, modified_ns, tuple(ranges))


def _number(value: object, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise CheckpointError(f"{where}: expected a whole number, found {quote(value)}")
    return value
