"""Which TCP ports a host listens on, and which program does."""

from __future__ import annotations

import re
from typing import NamedTuple

from benchmarks.namespaces import Host

_PID = re.compile(r"pid=(\d+)")


class Port(NamedTuple):
    """`address`: "*" for all of the host's. `command`: the line that started the process, "" for none."""

    address: str
    number: int
    command: str


def listening(host: Host) -> list[Port]:
    """All of a host's listening TCP ports but those that only the host itself reaches."""
    ports = []
    for line in host.run("ss -H -ltnp").stdout.splitlines():
        fields = line.split()
        address, _, number = fields[3].rpartition(":")
        address = address.strip("[]").partition("%")[0]
        if address in ("::", "0.0.0.0", "*"):
            address = "*"
        if address.startswith("127.") or address in ("::1", "::ffff:127.0.0.1"):
            continue
        found = _PID.search(line)
        ports.append(Port(address.removeprefix("::ffff:"), int(number), _command(host, found)))
    return ports


def _command(host: Host, found: re.Match[str] | None) -> str:
    if found is None:
        return ""
    shown = host.run(["cat", f"/proc/{found[1]}/cmdline"], check=False).stdout
    return shown.replace("\0", " ").strip()
