"""The firewall that docs/security.md gives closes high ports to all but the cluster's boxes."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.namespaces import Host
from tests.launcher.hosts import hosts_or_skip
from tests.security.ports import listening

PAGE = Path(__file__).parents[2] / "docs" / "security.md"
LISTEN = (
    "import socket, time; s = socket.create_server(('', {port})); "
    "print(1, flush=True); s.listen(); time.sleep(99)"
)
CONNECT = "import socket,sys;socket.create_connection((sys.argv[1],int(sys.argv[2])),1)"


def rules(boxes: str) -> list[str]:
    """The page's commands, for these boxes."""
    lines = [line.strip() for line in PAGE.read_text().splitlines() if line.startswith("    nft ")]
    assert lines
    return [re.sub(r"elements = \{ [^}]* \}", f"elements = {{ {boxes} }}", line) for line in lines]


@pytest.fixture
def three() -> Iterator[tuple[Host, ...]]:
    if shutil.which("nft") is None:
        pytest.skip("nft missing: apt-get install nftables")
    with hosts_or_skip(3, "10.38.7.0/24") as made:
        yield made


def connects(source: Host, target: Host, port: int) -> bool:
    return source.run(["python3", "-c", CONNECT, target.address, str(port)], check=False).returncode == 0


def test_it_lets_the_boxes_in_and_nobody_else(three: tuple[Host, ...]) -> None:
    box, friend, stranger = three
    for port in (20_000, 500):
        server = box.popen(["python3", "-c", LISTEN.format(port=port)], stdout=-1)
        assert server.stdout is not None
        server.stdout.readline()
    found = {port.number: port for port in listening(box)}
    assert {22, 500, 20_000} == set(found)
    assert found[20_000].address == "*"
    assert "create_server" in found[20_000].command
    assert connects(stranger, box, 20_000)
    for line in rules(f"{box.address}, {friend.address}"):
        box.run(line)
    assert connects(friend, box, 20_000)
    assert not connects(stranger, box, 20_000)
    assert connects(box, box, 20_000)
    # What a box offers elsewhere stays as it was.
    assert connects(stranger, box, 500)
    box.run("nft delete table inet potluck")
    assert connects(stranger, box, 20_000)
