"""Three hosts with ssh between them become a cluster that writes what one process writes; nothing is left."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks.cluster_of_hosts import write_cluster_file
from benchmarks.namespaces import Host
from tests.launcher.hosts import hosts_or_skip
from tests.orchestrator.processes import ROOT, wait_until

pytestmark = [pytest.mark.long, pytest.mark.xdist_group("launcher")]

MODEL = ROOT / "models" / "potluck-tiny"
PROMPT = ("--prompt", "The following options", "--max-tokens", "24", "--ignore-eos", "--json")
PATIENCE_S = 600.0


@pytest.fixture(scope="module")
def three() -> Iterator[tuple[Host, ...]]:
    with hosts_or_skip(3, "10.34.1.0/24") as made:
        yield made


@pytest.fixture(scope="module")
def expected(three: tuple[Host, ...]) -> list[int]:
    """What one process writes."""
    return document(potluck(three[0], "generate", "--model", MODEL, *PROMPT))["token_ids"]


def potluck(host: Host, *arguments: object, settings: str = "") -> tuple[int, str, str]:
    """Run a command on a host: exit code, standard output, standard error."""
    words = " ".join(f"'{word}'" for word in arguments)
    program = f"{sys.executable} -c 'from orchestrator.cli.main import main; main()'"
    command = f"cd / && PYTHONPATH={ROOT} {settings} {program} {words}"
    done = host.run(command, check=False, timeout_s=PATIENCE_S)
    return done.returncode, done.stdout, done.stderr


def document(result: tuple[int, str, str]) -> dict[str, Any]:
    """The one JSON document that a command printed, and nothing besides."""
    code, out, err = result
    assert code == 0, err
    parsed: dict[str, Any] = json.loads(out)
    return parsed


def check_nothing_is_left(hosts: tuple[Host, ...]) -> None:
    for host in hosts:
        wait_until(lambda host=host: list(host.pids()) == [host.init])  # type: ignore[misc]
        listening = host.run("ss -ltnxH").stdout.splitlines()
        assert [line for line in listening if f"{host.address}:22" not in line] == []
        assert host.run("ls /dev/shm").stdout == ""
        secret = "find ~ -path ~/.ssh -prune -o ( -name *.key -o -name token -o -name *.crt ) -print"
        assert host.run(secret.replace("(", r"\(").replace(")", r"\)").replace("*", r"\*")).stdout == ""


def test_potluck_brings_it_up_and_down(three: tuple[Host, ...], expected: list[int]) -> None:
    head = three[0]
    file = write_cluster_file(head.home, three)
    up = document(potluck(head, "up", file, "--model", MODEL, "--json"))
    assert up["usable"]
    assert up["missing"] == {}
    assert [worker["node"] for worker in up["workers"]] == ["h2", "h3"]
    ran = document(potluck(head, "generate", "--cluster", file, *PROMPT))
    assert ran["token_ids"] == expected
    assert ran["remote_layers_per_token"] > 0
    status = document(potluck(head, "status", file, "--json"))
    assert {box["node"]: box["state"] for box in status["boxes"]} == {
        "h1": "up",
        "h2": "ready",
        "h3": "ready",
    }
    assert status["lost_experts"] == 0
    # A second time it finds all of it running.
    again = document(potluck(head, "up", file, "--model", MODEL, "--json"))
    assert again["workers"] == up["workers"]
    down = document(potluck(head, "down", file, "--json"))
    assert all(box["clean"] for box in down["boxes"].values())
    check_nothing_is_left(three)
