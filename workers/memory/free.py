"""How much memory this machine has left for a process, by what the system and its cgroup say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil

from placement.units import size

# Of what is free: for what others on the machine do next, and for what no estimate counts.
MARGIN_SHARE = 0.03
LEAST_MARGIN_BYTES = 256_000_000

_SYSTEM = Path("/")


@dataclass(frozen=True, slots=True)
class FreeMemory:
    """`num_bytes` before any margin; `told_by` names what allows no more."""

    num_bytes: int
    told_by: str

    @property
    def margin_bytes(self) -> int:
        return max(round(MARGIN_SHARE * self.num_bytes), LEAST_MARGIN_BYTES)

    @property
    def usable_bytes(self) -> int:
        """Less the margin, at least 0."""
        return max(0, self.num_bytes - self.margin_bytes)

    @property
    def told(self) -> str:
        """For people, the margin named: "this machine leaves 100.0 GB, of which 3.0 GB stay free"."""
        margin = size(min(self.num_bytes, self.margin_bytes))
        return f"{self.told_by} leaves {size(self.num_bytes)}, of which {margin} stay free"


def machine_memory() -> FreeMemory:
    """The smaller of what the machine has available and what the process's cgroups leave.

    Swap does not count. The page cache does: pages of files can be given up. What others have set aside is
    not taken off (`workers.memory.reservations.free_memory`).
    """
    machine = FreeMemory(psutil.virtual_memory().available, "this machine")
    return min([machine, *cgroup_limits(_SYSTEM)], key=lambda free: free.num_bytes)


def cgroup_limits(root: Path) -> list[FreeMemory]:
    """What each cgroup with a limit leaves, that of this process and those around it, versions 1 and 2.

    Args:
        root: where /proc and the mounts are looked for, "/" but in tests.
    """
    found = []
    for mount in _mounts(root):
        for directory in mount.directories():
            free = _left(directory, mount.version)
            if free is not None:
                found.append(free)
    return found


def cgroup_total(root: Path) -> int:
    """The least limit of those cgroups, whatever is used of it; 2^63 without any."""
    limits = [
        _text(directory / _NAMES[mount.version][0]).strip()
        for mount in _mounts(root)
        for directory in mount.directories()
    ]
    return min((int(limit) for limit in limits if limit.isdigit()), default=2**63)


@dataclass(frozen=True, slots=True)
class _Mount:
    """A hierarchy that limits memory: where it is mounted, and this process's directory in it."""

    version: int
    point: Path
    own: Path

    def directories(self) -> list[Path]:
        """The process's own, then those around it up to the mount."""
        around = [self.own, *self.own.parents]
        return around[: around.index(self.point) + 1]


def _mounts(root: Path) -> list[_Mount]:
    groups = _groups(_text(root / "proc/self/cgroup"))
    mounts = []
    for line in _text(root / "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        where, what = before.split(), after.split()
        if len(where) < 5 or len(what) < 3:
            continue
        kind, options = what[0], what[-1].split(",")
        version = {"cgroup": 1, "cgroup2": 2}.get(kind)
        group = groups.get(version or 0)
        if version is None or group is None or (version == 1 and "memory" not in options):
            continue
        point = root / where[4].lstrip("/")
        # In a container the hierarchy is mounted from somewhere below its top.
        below = group.removeprefix(where[3].rstrip("/")) if group.startswith(where[3]) else ""
        own = point / below.strip("/")
        mounts.append(_Mount(version, point, own if own.is_dir() else point))
    return mounts


def _groups(text: str) -> dict[int, str]:
    """Of /proc/self/cgroup: version -> this process's group that limits memory."""
    groups = {}
    for line in text.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if "memory" in controllers.split(","):
            groups[1] = group
        elif number == "0" and not controllers:
            groups[2] = group
    return groups


_NAMES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    2: ("memory.max", "memory.current", ""),
}


def _left(directory: Path, version: int) -> FreeMemory | None:
    """None where the directory states no limit."""
    limit_name, usage_name, prefix = _NAMES[version]
    limit, usage = _text(directory / limit_name).strip(), _text(directory / usage_name).strip()
    # Version 1 says "no limit" by a number near 2^63.
    if not (limit.isdigit() and usage.isdigit()) or int(limit) >= 2**60:
        return None
    cached = 0
    for line in _text(directory / "memory.stat").splitlines():
        name, _, value = line.partition(" ")
        if name in (f"{prefix}active_file", f"{prefix}inactive_file") and value.isdigit():
            cached += int(value)
    return FreeMemory(max(0, int(limit) - int(usage) + cached), f"the limit in {directory / limit_name}")


def _text(path: Path) -> str:
    """ "" where there is no such file."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
