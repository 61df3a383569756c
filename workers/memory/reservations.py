"""What this user's commands have set aside of this machine's memory, so that two of them cannot both take it.

Each process notes what it needs in a file that it keeps locked for as long as it lives: a file that nobody
locks was left by a process that was killed, and is removed.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import stat
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from placement.errors import PlanDoesNotFit
from placement.units import size
from workers.memory.budget import Need, SharedPart, check_memory
from workers.memory.free import FreeMemory, machine_memory

LOCK = "lock"
# Whoever holds the lock does so for milliseconds; one that was stopped meanwhile must not stop others.
LOCK_TIMEOUT_S = 2.0
_MOST_NAMED = 3


@dataclass(frozen=True, slots=True)
class Reserved:
    """What one process has set aside.

    Attributes:
        what: the command, for people.
        private_bytes: of its own: caches, converted weights.
        shared: parts of mapped files, which it may share with others.
        anonymous_bytes: memory of its own that it had when it reserved.
        started: when the process started, as the system tells it: numbers of processes come again.
        covers: it stands for processes that it starts, too.
    """

    name: str
    pid: int
    what: str
    private_bytes: int
    shared: tuple[SharedPart, ...]
    anonymous_bytes: int
    started: str
    covers: bool

    @property
    def outstanding_bytes(self) -> int:
        """Of its own and not taken yet: what it has taken is missing from what is free already."""
        now = _process(self.pid)
        if now is None or now.started != self.started:
            # Seen from another namespace of process numbers.
            return self.private_bytes
        return min(
            self.private_bytes, max(0, self.private_bytes - (now.anonymous_bytes - self.anonymous_bytes))
        )


class Reservation:
    """Memory that this process has set aside, until `close` or its end."""

    def __init__(self, path: Path, descriptor: int, reserved: Reserved) -> None:
        self._path = path
        self._descriptor = descriptor
        self._reserved = reserved

    @property
    def name(self) -> str:
        """For the spec of a worker that is part of it."""
        return self._reserved.name

    def narrow(self, needs: Sequence[Need]) -> None:
        """From now on it is these needs only, and stands for no other process."""
        fields = _fields(needs, self._reserved.what, covers=False)
        fields["anonymous_bytes"] = self._reserved.anonymous_bytes
        with _locked(self._path.parent):
            _write(self._descriptor, fields)

    def room_bytes(self) -> int:
        """Memory that is free for more than the needs of this reservation."""
        with _locked(self._path.parent):
            everyone = _alive(self._path.parent)
        return _less(machine_memory(), everyone, ()).usable_bytes

    def close(self) -> None:
        """Harmless when closed."""
        if self._descriptor >= 0:
            with suppress(OSError):
                self._path.unlink()
            os.close(self._descriptor)
            self._descriptor = -1


def reserve(
    needs: Sequence[Need],
    *,
    what: str,
    where: str,
    advice: str,
    covers: bool = False,
    part_of: str = "",
    folder: Path | None = None,
) -> Reservation:
    """Set memory aside, if it is free and nobody else has.

    Args:
        what: this process, as others name it where they are refused.
        where, advice: as of `check_memory`.
        covers: the needs are also those of workers that this process starts, until `narrow`.
        part_of: the reservation of the process that started this one: while that covers it, nothing is
            checked.

    Raises:
        PlanDoesNotFit: it is not free; names the commands that have set some aside.
    """
    folder = folder or default_folder()
    with _locked(folder):
        others = _alive(folder)
        if not any(other.name == part_of and other.covers for other in others):
            shared = [part for need in needs for part in need.shared]
            check_memory(needs, _less(machine_memory(), others, shared), where=where, advice=advice)
        fields = _fields(needs, what, covers=covers)
        path = folder / f"{os.getpid()}-{secrets.token_hex(4)}.json"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        _write(descriptor, fields)
    return Reservation(path, descriptor, _reserved(path.name, fields))


def free_memory(
    sharing: Iterable[SharedPart] = (), *, part_of: str = "", folder: Path | None = None
) -> FreeMemory:
    """What `machine_memory` tells, less what other processes of this user have set aside and not taken.

    Swap does not count. The page cache does: pages of files can be given up. So mapped files that another
    process works from are taken off, unless the asker shares them.

    Args:
        sharing: parts of mapped files that the asker maps too: they cost nothing more.
        part_of: a reservation that the asker belongs to.
    """
    folder = folder or default_folder()
    own = _process(os.getpid())
    with _locked(folder):
        others = [
            other
            for other in _alive(folder)
            if other.name != part_of
            and not (own is not None and (other.pid, other.started) == (os.getpid(), own.started))
        ]
    return _less(machine_memory(), others, list(sharing))


def default_folder() -> Path:
    """One for all commands of this user, whatever their environment says."""
    return Path(f"/tmp/.potluck-{os.geteuid()}")


def shared_bytes(parts: Iterable[SharedPart], besides: Iterable[SharedPart] = ()) -> int:
    """What parts of files take, those that several name once, less what `besides` names."""
    masks: dict[tuple[str, int], int] = {}
    for part in parts:
        key = part.file, part.each_bytes
        masks[key] = masks.get(key, 0) | part.mask
    for part in besides:
        key = part.file, part.each_bytes
        masks[key] = masks.get(key, 0) & ~part.mask
    return sum(each_bytes * mask.bit_count() for (_, each_bytes), mask in masks.items())


def _less(free: FreeMemory, others: Sequence[Reserved], sharing: Sequence[SharedPart]) -> FreeMemory:
    private = {other.name: other.outstanding_bytes for other in others}
    mapped = shared_bytes((part for other in others for part in other.shared), besides=sharing)
    taken = sum(private.values()) + mapped
    if not taken:
        return free
    each = [(other, private[other.name] + shared_bytes(other.shared, sharing)) for other in others]
    most = sorted(((other, own) for other, own in each if own), key=lambda pair: pair[1], reverse=True)
    named, rest = most[:_MOST_NAMED], most[_MOST_NAMED:]
    who = "; ".join(f"{size(own)} for process {other.pid} ({other.what})" for other, own in named)
    if rest:
        who = f"{who}; {size(sum(own for _, own in rest))} for {len(rest)} more"
    told_by = f"{free.told_by}, less what other commands have set aside ({who}),"
    return FreeMemory(max(0, free.num_bytes - taken), told_by)


def _fields(needs: Sequence[Need], what: str, *, covers: bool) -> dict[str, Any]:
    own = _process(os.getpid())
    shared = [part for need in needs for part in need.shared]
    return {
        "pid": os.getpid(),
        "what": what,
        "private_bytes": sum(need.num_bytes for need in needs) - sum(part.num_bytes for part in shared),
        "shared": [[part.file, part.each_bytes, f"{part.mask:x}"] for part in shared],
        "anonymous_bytes": 0 if own is None else own.anonymous_bytes,
        "started": "" if own is None else own.started,
        "covers": covers,
    }


def _reserved(name: str, fields: Mapping[str, Any]) -> Reserved:
    shared = tuple(SharedPart(file, each_bytes, int(mask, 16)) for file, each_bytes, mask in fields["shared"])
    return Reserved(name=name, **{**fields, "shared": shared})


def _write(descriptor: int, fields: Mapping[str, Any]) -> None:
    content = json.dumps(fields).encode()
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, content, 0)


def _alive(folder: Path) -> list[Reserved]:
    """What processes that live have reserved; what the others left is removed."""
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
        except BlockingIOError:
            with suppress(ValueError, TypeError, KeyError):
                content = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
                found.append(_reserved(path.name, json.loads(content)))
        except OSError:
            continue
        finally:
            os.close(descriptor)
    return found


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time looks and writes.

    Raises:
        PlanDoesNotFit: nothing can be noted there; says why.
    """
    try:
        with _lock_of(folder):
            yield
    except OSError as error:
        raise PlanDoesNotFit(
            f"{folder}: cannot note what memory is set aside: {error.strerror}; expected a place where this "
            "user may write, with room for some small files"
        ) from error


@contextmanager
def _lock_of(folder: Path) -> Iterator[None]:
    folder.mkdir(mode=0o700, exist_ok=True)
    facts = folder.lstat()
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.geteuid():
        raise PlanDoesNotFit(f"{folder}: expected a folder of this user alone, found another: remove it")
    lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        until_s = time.monotonic() + LOCK_TIMEOUT_S
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= until_s:
                    break
                time.sleep(0.005)
        yield
    finally:
        os.close(lock)


@dataclass(frozen=True, slots=True)
class _Process:
    anonymous_bytes: int
    started: str


def _process(pid: int) -> _Process | None:
    """None where there is none, or the system does not tell."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
        # The name, in parentheses, may hold anything.
        fields = (
            Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        )
    except OSError:
        return None
    anonymous = next((line.split()[1] for line in status.splitlines() if line.startswith("RssAnon:")), "0")
    return _Process(int(anonymous) * 1024, fields[19])
