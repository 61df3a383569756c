"""Boxes are asked over ssh, and what is wrong with one is said."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from tests.launcher.hosts import hosts_or_skip

ROOT = Path(__file__).parents[3]
TINY = ROOT / "models" / "potluck-tiny"


@pytest.fixture(scope="module")
def seen() -> dict[str, list[str]]:
    """What the first of three hosts finds, by what was made wrong on the third."""
    if shutil.which("nft") is None:
        pytest.skip("nft missing: apt-get install nftables")
    with hosts_or_skip(3, "10.35.1.0/24") as hosts:
        third = hosts[2].home
        shutil.copytree(TINY, third / "other")
        weights = third / "other" / "model.safetensors"
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
        (third / "bare" / "bin").mkdir(parents=True)
        bare = third / "bare" / "bin" / "python"
        bare.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
        bare.chmod(0o755)
        for rule in (
            "add table inet firewall",
            "add chain inet firewall in { type filter hook input priority 0 ; }",
            "add rule inet firewall in tcp flags & (syn|ack) == syn tcp dport != 22 drop",
        ):
            hosts[2].run(["nft", rule])
        module = ["env", f"PYTHONPATH={ROOT}", sys.executable, "-m"]
        session = "tests.orchestrator.cluster.examine_session"
        run = hosts[0].run([*module, session, *(host.address for host in hosts)])
        found: dict[str, list[str]] = json.loads(run.stdout)
        return found


def test_boxes_that_are_right_are_left_alone(seen: dict[str, list[str]]) -> None:
    assert seen["right"] == []


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        (
            "closed",
            "h3: ports closed: h1 (10.35.1.1) cannot connect to h3 (10.35.1.3) (no answer): a firewall "
            "stands between; on h3 run `sudo ufw allow from 10.35.1.1`",
        ),
        ("no venv", "h3: no Python environment at ~/none: install Potluck there"),
        ("bare python", "h3: the environment ~/bare has no Potluck"),
        ("no model", "h3: model missing: nothing at ~/none: on h1 run `rsync -a --partial"),
        (
            "other model",
            "h3: another model at ~/other than on the head: model.safetensors differs: on h1 run",
        ),
        ("refused", "h3: ssh refused on port 23: start sshd there, or give the right ssh_port"),
    ],
)
def test_one_line_says_what_is_wrong(case: str, expected: str, seen: dict[str, list[str]]) -> None:
    (line,) = seen[case]
    assert line.startswith(expected)
    assert len(line.splitlines()) == 1


def test_all_that_is_wrong_with_a_box_is_said(seen: dict[str, list[str]]) -> None:
    port, memory = seen["port and memory"]
    assert port.startswith("h3: port 22 is in use by sshd")
    assert memory.startswith("h3: not enough memory: 1000.00 TB of experts are to lie there")


def test_only_the_heads_box_starts_a_cluster(seen: dict[str, list[str]]) -> None:
    (line,) = seen["not the head"]
    assert "the head is h2 (10.35.1.2), which is not this machine: run this there" in line
