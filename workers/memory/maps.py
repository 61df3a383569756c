"""Which part of which file lies at an address: the files mapped into this process."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class FilePlace:
    """Bytes of a file."""

    path: Path
    offset: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class _Mapping:
    start: int
    end: int
    offset: int
    path: str


class MappedFiles:
    """The mappings of files at one moment, ascending."""

    def __init__(self, mappings: list[_Mapping]) -> None:
        self._mappings = sorted(mappings, key=lambda mapping: mapping.start)
        self._starts = [mapping.start for mapping in self._mappings]

    @classmethod
    def now(cls) -> MappedFiles:
        """As the system lists them."""
        return cls.parse(Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape"))

    @classmethod
    def parse(cls, text: str) -> MappedFiles:
        """Of lines "start-end permissions offset device inode path"; those without a file are left out."""
        mappings: list[_Mapping] = []
        for line in text.split("\n"):
            fields = line.split(maxsplit=5)
            if len(fields) < 6 or not fields[5].startswith("/"):
                continue
            start, _, end = fields[0].partition("-")
            path = fields[5]
            this = _Mapping(int(start, 16), int(end, 16), int(fields[2], 16), path)
            before = mappings[-1] if mappings else None
            # One mapping that the system has cut, where parts of it were advised differently.
            if (
                before is not None
                and (before.end, before.path) == (this.start, path)
                and before.offset + before.end - before.start == this.offset
            ):
                mappings[-1] = _Mapping(before.start, this.end, before.offset, path)
            else:
                mappings.append(this)
        return cls(mappings)

    def place_of(self, address: int, num_bytes: int) -> FilePlace | None:
        """What of a file lies there; None where it is memory of the process's own."""
        index = bisect_right(self._starts, address) - 1
        if index < 0:
            return None
        found = self._mappings[index]
        if address + num_bytes > found.end:
            return None
        path = Path(found.path.replace("\\012", "\n").removesuffix(" (deleted)"))
        return FilePlace(path, found.offset + address - found.start, num_bytes)
