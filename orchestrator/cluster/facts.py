"""What a box says of itself: `python -m orchestrator.cluster.facts` reads a question, and prints facts.

Both are one JSON document, on standard input and output. It looks at what may keep a box from serving and
changes nothing; how fast the box is, the probe measures.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shutil
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from placement.errors import PotluckError
from workers.formats.digests import current_digests
from workers.formats.identity import model_identity
from workers.memory.reservations import free_memory

PACKAGES = ("orchestrator", "placement", "transport", "workers")
_SYS = Path("/sys")


@dataclass(frozen=True, slots=True)
class Question:
    """What to look at.

    Attributes:
        peer: IPv4 address whose way is looked at: the head's; for the head another box's. "" for none.
        model: path of the model there, "" for none. Below the user's home where it begins with ~/.
        ports: that something is to listen on at `address`.
    """

    address: str
    peer: str = ""
    model: str = ""
    ports: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A model's files. `error`: why there is no identity, one line, else "".

    `files`: name -> digest of header and samples. `whole`: name -> digest of all bytes, where somebody had
    it made (`potluck verify`) and the file is as it was then.
    """

    path: str
    is_there: bool = True
    identity: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    whole: Mapping[str, str] = field(default_factory=dict)
    error: str = ""


@dataclass(frozen=True, slots=True)
class RouteFacts:
    """The interface that a peer is reached by. `mbits_per_s`: what its cable runs at, 0 where nobody says."""

    interface: str
    is_wireless: bool
    mbits_per_s: int = 0


@dataclass(frozen=True, slots=True)
class DiskFacts:
    """Room where something is written. `what` it is for; bytes."""

    path: str
    what: str
    free_bytes: int


@dataclass(frozen=True, slots=True)
class PortFacts:
    """A port that cannot be listened on: why, as the system says, and what does where that is known."""

    port: int
    why: str
    holder: str = ""


@dataclass(frozen=True, slots=True)
class BoxFacts:
    """What a box found out about itself.

    Attributes:
        ray: "" where it is not installed.
        code: digest of Potluck's own source files.
        clock_s: seconds since 1970 there.
        addresses: its IPv4 addresses.
        governor: what keeps its processors at their lowest clock, "" for nothing.
    """

    system: str
    python: str
    ray: str
    potluck: str
    code: str
    clock_s: float
    addresses: tuple[str, ...]
    memory_free_bytes: int
    memory_told_by: str
    disks: tuple[DiskFacts, ...] = ()
    ports: tuple[PortFacts, ...] = ()
    route: RouteFacts | None = None
    model: ModelFacts | None = None
    governor: str = ""
    on_battery: bool = False

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> BoxFacts:
        """Raises ValueError, KeyError or TypeError for another document."""
        fields = dict(document)
        fields["addresses"] = tuple(fields["addresses"])
        fields["disks"] = tuple(DiskFacts(**disk) for disk in fields["disks"])
        fields["ports"] = tuple(PortFacts(**port) for port in fields["ports"])
        fields["route"] = None if fields["route"] is None else RouteFacts(**fields["route"])
        fields["model"] = None if fields["model"] is None else ModelFacts(**fields["model"])
        return cls(**fields)


def gather(question: Question) -> BoxFacts:
    """Look at this machine; under a second, whatever the model's size."""
    memory = free_memory()
    facts = BoxFacts(
        system=platform.system(),
        python=platform.python_version(),
        ray=_version("ray"),
        potluck=_version("potluck-moe"),
        code=source_digest(),
        clock_s=0.0,
        addresses=tuple(own_addresses()),
        memory_free_bytes=memory.usable_bytes,
        memory_told_by=memory.told_by,
        disks=_disks(),
        ports=tuple(found for port in question.ports if (found := _taken(question.address, port))),
        route=route_to(question.peer) if question.peer else None,
        model=_model(question.model) if question.model else None,
        governor=slow_governor(_SYS),
        on_battery=_on_battery(),
    )
    # Last: what was looked at may have taken its time.
    return replace(facts, clock_s=time.time())


def source_digest() -> str:
    """16 hexadecimal digits of Potluck's own Python files: other code of the same version is told apart."""
    root = Path(__file__).parents[2]
    total = hashlib.sha256()
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            total.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
    return total.hexdigest()[:16]


def own_addresses() -> list[str]:
    """This machine's IPv4 addresses but loopback ones."""
    entries = [entry for entries in psutil.net_if_addrs().values() for entry in entries]
    return [e.address for e in entries if e.family == socket.AF_INET and not e.address.startswith("127.")]


def route_to(peer: str) -> RouteFacts | None:
    """The interface that this machine reaches an IPv4 address by; None where no way leads there."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            # Sends nothing: it only makes the system choose.
            probe.connect((peer, 9))
        except OSError:
            return None
        own = probe.getsockname()[0]
    for name, entries in psutil.net_if_addrs().items():
        if any(entry.family == socket.AF_INET and entry.address == own for entry in entries):
            return interface_facts(name, _SYS)
    return None


def interface_facts(name: str, sys_folder: Path) -> RouteFacts:
    """What the system says of an interface."""
    folder = sys_folder / "class" / "net" / name
    is_wireless = (folder / "wireless").exists() or (folder / "phy80211").exists()
    speed = _text(folder / "speed")
    # -1 where the interface has no such speed.
    mbits = int(speed) if not is_wireless and speed.isdecimal() else 0
    return RouteFacts(name, is_wireless, mbits)


def slow_governor(sys_folder: Path) -> str:
    """The name of what keeps processors at their lowest clock, "" for nothing.

    `powersave` of the drivers that choose clocks themselves does not.
    """
    folder = sys_folder / "devices" / "system" / "cpu" / "cpu0" / "cpufreq"
    governor, driver = _text(folder / "scaling_governor"), _text(folder / "scaling_driver")
    chooses = driver in ("intel_pstate", "amd-pstate", "amd-pstate-epp")
    return governor if governor == "powersave" and not chooses else ""


def _on_battery() -> bool:
    try:
        battery = psutil.sensors_battery()
    except (OSError, AttributeError, ValueError):
        return False
    return battery is not None and battery.power_plugged is False


def _model(path: str) -> ModelFacts:
    place = os.path.expanduser(path)
    if not os.path.exists(place):
        return ModelFacts(path, is_there=False, error="no such file or directory")
    try:
        found = model_identity(place)
        digests = current_digests(place)
    except PotluckError as error:
        return ModelFacts(path, error=str(error))
    except OSError as error:
        return ModelFacts(path, error=f"{error.filename or place}: {error.strerror}")
    whole = {}
    if digests is not None:
        # Of ranges of one size: digests of others cannot be compared.
        whole = {file.name: _joined([str(digests.range_bytes), *file.ranges]) for file in digests.files}
    return ModelFacts(path, True, found.hex, {file.name: file.digest for file in found.files}, whole)


def _joined(parts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _disks() -> tuple[DiskFacts, ...]:
    places = {"~": "keys and logs", os.environ.get("TMPDIR", "/tmp"): "Ray", "/dev/shm": "shared memory"}
    found = []
    for path, what in places.items():
        with contextlib.suppress(OSError):
            found.append(DiskFacts(path, what, shutil.disk_usage(os.path.expanduser(path)).free))
    return tuple(found)


def _taken(address: str, port: int) -> PortFacts | None:
    """Why nothing can listen there, None where something can."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As servers do: a port that a connection has just left is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
            probe.listen(1)
        except OSError as error:
            return PortFacts(port, (error.strerror or str(error)).lower(), _holder(port))
    return None


def _holder(port: int) -> str:
    """What listens on a port; "" where that is not for this user to know."""
    try:
        for entry in psutil.net_connections("tcp4"):
            if entry.status == psutil.CONN_LISTEN and entry.laddr and entry.laddr.port == port and entry.pid:
                return f"{psutil.Process(entry.pid).name()}, pid {entry.pid}"
    except (psutil.Error, OSError):
        pass
    return ""


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, ValueError):
        return ""


def main() -> None:
    """Answer the question on standard input."""
    asked = json.load(sys.stdin)
    question = Question(asked["address"], asked["peer"], asked["model"], tuple(asked["ports"]))
    json.dump(asdict(gather(question)), sys.stdout)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
