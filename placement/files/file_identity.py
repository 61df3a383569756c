"""Whether a file that is in use is still the one that was opened."""

from __future__ import annotations

import os
from dataclasses import dataclass

from placement.errors import PotluckError


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """Which file it is, and when it was written last; `modified_ns` since the epoch."""

    device: int
    inode: int
    num_bytes: int
    modified_ns: int

    @classmethod
    def of(cls, file: int | str | os.PathLike[str]) -> FileIdentity:
        """Of an open file's descriptor, or of what lies at a path; raises OSError."""
        found = os.stat(file)
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)

    def check(self, file: int | str | os.PathLike[str], path: object, error: type[PotluckError]) -> None:
        """Compare with what is there now.

        Raises:
            error: another file, or the same one written to; names `path`.
        """
        try:
            found = FileIdentity.of(file)
        except OSError as reason:
            raise error(
                f"{path}: {reason.strerror}; expected that a model in use stays where it is"
            ) from None
        if found == self:
            return
        if found.num_bytes != self.num_bytes:
            change = f"it had {self.num_bytes:,} bytes when it was opened and has {found.num_bytes:,} now"
        elif (found.device, found.inode) != (self.device, self.inode):
            change = "another file took its place since it was opened"
        else:
            change = "it was written to since it was opened"
        raise error(f"{path}: {change}; expected that nobody changes a model in use: start again")
