"""A stranger who hears all that the hosts send, and looks through it for what should be secret."""

from __future__ import annotations

import base64
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.namespaces import Host
from tests.orchestrator.processes import wait_until
from tests.security.packets import Streams, read_streams

LEAST_BYTES = 6
"""Shorter texts turn up by chance."""
_QUIET_S = 0.3


@contextmanager
def overheard(hosts: Sequence[Host], folder: Path) -> Iterator[None]:
    """Write all that the hosts send, whole packets, to files in `folder`, until the block ends."""
    files = [folder / f"{host.name}.pcap" for host in hosts]
    with ExitStack() as stack:
        for host, path in zip(hosts, files, strict=True):
            stack.enter_context(_overheard(host.cable, path))
        yield
        _wait_until_quiet(files)


@contextmanager
def _overheard(cable: str, path: Path) -> Iterator[None]:
    """What comes out of one host's cable."""
    command = ["tcpdump", "-i", cable, "-Q", "in", "-n", "-s", "0", "-U", "-B", "65536", "-Z", "root"]
    tcpdump = subprocess.Popen(
        [*command, "--immediate-mode", "-w", str(path)],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    with tcpdump:
        assert tcpdump.stderr is not None
        try:
            # It says so when it has begun; what came before would be missed.
            assert "listening on" in tcpdump.stderr.readline()
            yield
        finally:
            tcpdump.terminate()
        said = tcpdump.stderr.read()
    assert "0 packets dropped by kernel" in said, said


def heard(folder: Path) -> Streams:
    """What was overheard, as streams of bytes."""
    streams: dict[str, bytes] = {}
    for path in sorted(folder.glob("*.pcap")):
        for flow, data in read_streams(path).items():
            streams[f"{flow} ({path.stem})"] = data
    return streams


def found_in(streams: Streams, secrets: Mapping[str, bytes]) -> list[str]:
    """Which secrets can be read in what was heard: "NAME as FORM in FLOW", a line for each.

    They are looked for as they are, in hexadecimal digits and in base64, in every stream put together again
    and in every other packet.
    """
    found = []
    for name, secret in secrets.items():
        assert len(secret) >= LEAST_BYTES, f"{name} is too short to be looked for"
        for form, written in forms_of(secret):
            found += [f"{name} as {form} in {flow}" for flow, data in streams.items() if written in data]
    return found


def forms_of(secret: bytes) -> Iterator[tuple[str, bytes]]:
    """How a secret may be written."""
    yield "itself", secret
    yield "hex", secret.hex().encode()
    yield "HEX", secret.hex().upper().encode()
    yield "UTF-16", secret.decode("latin-1").encode("utf-16-le")
    for skipped in range(3):
        # Where it stands in what was encoded decides which of three texts it becomes. The characters at its
        # ends have bits of its neighbours.
        text = base64.b64encode(b"\0" * skipped + secret)
        first = (8 * skipped + 5) // 6
        last = 8 * (skipped + len(secret)) // 6
        yield f"base64+{skipped}", text[first:last]
        for_urls = text[first:last].translate(bytes.maketrans(b"+/", b"-_"))
        if for_urls != text[first:last]:
            yield f"base64url+{skipped}", for_urls


def _wait_until_quiet(files: Sequence[Path]) -> None:
    """Until no packet has come for a moment: the last ones are written a little later."""
    last = [-1.0, time.monotonic()]

    def is_quiet() -> bool:
        size = sum(path.stat().st_size for path in files if path.exists())
        if size != last[0]:
            last[:] = [size, time.monotonic()]
        return time.monotonic() - last[1] >= _QUIET_S

    wait_until(is_quiet)
