"""A whole run on three hosts: nothing secret is heard, and no port is open that docs/security.md lacks."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.cluster_of_hosts import write_cluster_file
from benchmarks.namespaces import Host
from tests.launcher.hosts import hosts_or_skip
from tests.security.listener import found_in, heard, overheard
from tests.security.packets import Streams
from tests.security.ports import Port, listening

pytestmark = pytest.mark.long

PAGE = Path(__file__).parents[2] / "docs" / "security.md"
MODEL = Path(__file__).parents[2] / "models" / "potluck-tiny"
SERVED_PORT = 18_000
PROMPT = "The following options, which nobody else may read,"


@dataclass(frozen=True, slots=True)
class Run:
    """A cluster that was brought up, used and brought down.

    Attributes:
        ports: by host, while it was up.
        secrets: what nobody should hear, by name.
        text: that was generated.
        streams: what the hosts sent.
    """

    hosts: tuple[Host, ...]
    ports: dict[str, list[Port]]
    secrets: dict[str, bytes]
    text: str
    streams: Streams


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    folder = tmp_path_factory.mktemp("heard")
    with hosts_or_skip(3, "10.38.0.0/24") as hosts:
        head = hosts[0]
        file = write_cluster_file(head.home, hosts, name="secret", port=23838)
        with overheard(hosts, folder):
            head.run(f"potluck up {file} --model {MODEL}", timeout_s=240)
            said = head.run(
                f"potluck generate --model {MODEL} --cluster {file} --prompt '{PROMPT}' --max-tokens 12",
                timeout_s=120,
            )
            with serving(head, file):
                ports = {host.name: listening(host) for host in hosts}
            secrets = secrets_of(hosts)
            head.run(f"potluck down {file}", timeout_s=120)
        yield Run(hosts, ports, secrets, said.stdout, heard(folder))


@contextmanager
def serving(head: Host, file: Path) -> Iterator[None]:
    """`potluck serve` of the cluster for other boxes, from when it listens."""
    keys = head.home / "api-keys.json"
    head.run(f"potluck keys add {keys} ann")
    wanted = f"--cluster {file} --host {head.address} --port {SERVED_PORT} --api-keys {keys}"
    with head.popen(f"exec potluck serve --model {MODEL} {wanted}", stdin=subprocess.DEVNULL) as server:
        try:
            while all(port.number != SERVED_PORT for port in listening(head)):
                assert server.poll() is None, "potluck serve ended"
                time.sleep(0.5)
            yield
        finally:
            for pid, line in head.pids().items():
                if "potluck serve" in line:
                    os.kill(pid, signal.SIGTERM)
            server.wait(timeout=60)


def secrets_of(hosts: tuple[Host, ...]) -> dict[str, bytes]:
    """Prompt, paths, and each line of every secret file on every host."""
    found = {"prompt": PROMPT.encode(), "its words": PROMPT.split(",")[1].encode()}
    found["the model's path"] = str(MODEL).encode()
    for host in hosts:
        found[f"the home of {host.name}"] = str(host.home).encode()
        for path in sorted((host.home / ".potluck").rglob("*")):
            if path.name == "token" or path.suffix == ".key":
                for number, line in enumerate(secret_lines(path)):
                    found[f"{path.name} of {host.name}, {number}"] = line
    return found


def secret_lines(path: Path) -> list[bytes]:
    """Of a file of secrets: no PEM headers, and of a key pair what is not its public half."""
    lines = [line.strip() for line in path.read_bytes().splitlines()]
    return [line for line in lines if len(line) >= 16 and not line.startswith((b"--", b"#", b"public"))]


def test_the_listener_hears_the_whole_run_and_reads_nothing_secret(run: Run) -> None:
    assert sum(map(len, run.streams.values())) > 100_000
    kinds = {name.split(" of ")[0] for name in run.secrets}
    assert {"prompt", "the model's path", "token", "node.key"} <= kinds
    assert any(kind.endswith(".key") and kind != "node.key" for kind in kinds)
    assert found_in(run.streams, run.secrets) == []


def test_what_was_generated_is_not_heard(run: Run) -> None:
    words = run.text.strip()
    assert len(words) >= 8
    assert found_in(run.streams, {"answer": words[:40].encode()}) == []


def test_no_port_is_open_that_the_page_does_not_list(run: Run) -> None:
    listed = listed_ports()
    for name, ports in run.ports.items():
        address = next(host.address for host in run.hosts if host.name == name)
        for port in ports:
            process = next((process for process, _ in listed if is_of(port, process)), None)
            assert process is not None, f"{name}: {port} is on no line of the table"
            bound = "ADDRESS" if port.address == address else port.address
            # Users set up their own sshd.
            assert process == "sshd" or (process, bound) in listed, f"{name}: {port} is bound elsewhere"


def test_every_line_of_the_page_is_a_port_that_is_open(run: Run) -> None:
    """Or nobody would see that a line is of the past."""
    ports = [port for ports in run.ports.values() for port in ports]
    unseen = [process for process, _ in listed_ports() if not any(is_of(port, process) for port in ports)]
    assert unseen == []


def is_of(port: Port, process: str) -> bool:
    """Whether a port is of a program, a module of Python, or a process that calls itself so."""
    program = port.command.partition(" ")[0].rpartition("/")[2]
    return (
        program.rstrip(":") == process
        or f"-m {process}" in port.command
        or port.command.startswith(process)
        or f"/{process} " in port.command
    )


def listed_ports() -> set[tuple[str, str]]:
    """Process and where it is bound, of each line of the page's table."""
    section = PAGE.read_text(encoding="utf-8").split("## Listening ports")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `([^`]+)`[^|]*\|[^|]*\| ([^|]*) \|", section, flags=re.MULTILINE)
    assert len(rows) >= 6
    return {(process, bound.split("`")[1] if "`" in bound else "*") for process, bound in rows}
