"""Three hosts with ssh between them become a cluster by our launcher; nothing is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.cluster_of_hosts import write_cluster_file
from benchmarks.namespaces import Host
from tests.launcher.commands import (
    FEW,
    MODEL,
    PATIENCE_S,
    PROMPT,
    check_nothing_is_left,
    command,
    planned,
    potluck,
)
from tests.launcher.hosts import hosts_or_skip
from tests.orchestrator.command_line import document
from tests.orchestrator.processes import wait_until

pytestmark = [pytest.mark.long, pytest.mark.xdist_group("launcher")]

MANY = 400


@pytest.fixture(scope="module")
def three() -> Iterator[tuple[Host, ...]]:
    with hosts_or_skip(3, "10.34.1.0/24") as made:
        yield made


@pytest.fixture(scope="module")
def expected(three: tuple[Host, ...]) -> dict[str, Any]:
    """What one process writes."""
    return document(potluck(three[0], "generate", "--model", MODEL, *PROMPT, MANY, "--json"))


@pytest.fixture(scope="module")
def plan(three: tuple[Host, ...]) -> Path:
    return planned(three)


@pytest.fixture(scope="module")
def first(three: tuple[Host, ...], plan: Path) -> Iterator[Path]:
    """The file of a cluster which came up while h2 was off, and which is whole by now."""
    head, second, _ = three
    file = write_cluster_file(head.home, three, name="first", port=23457)
    try:
        second.cut()
        try:
            code, out, err = potluck(head, "up", file, "--model", MODEL, "--plan", plan, "--json")
        finally:
            second.restore()
        assert out, err
        found = json.loads(out)
        assert (code, found["usable"]) == ((2, False) if found["lost_experts"] else (0, True)), err
        assert list(found["missing"]) == ["h2"]
        assert "unreachable" in found["missing"]["h2"]
        assert [worker["node"] for worker in found["workers"]] == ["h3"]
        wait_until(lambda: len(running(file)["workers"]) == 2 and not running(file)["missing"], PATIENCE_S)
        yield file
    finally:
        potluck(head, "down", file)


def running(file: Path) -> dict[str, Any]:
    """What is noted of a cluster."""
    parsed: dict[str, Any] = json.loads((file.parent / ".potluck" / file.stem / "run.json").read_text())
    return parsed


def pid_of(host: Host, name: str) -> int:
    """Of the one process there whose command line has a name in it."""
    (pid,) = [pid for pid, line in host.pids().items() if name in line]
    return pid


def test_a_box_that_was_off_is_taken_in_and_tokens_are_those_of_one_process(
    three: tuple[Host, ...], first: Path, expected: dict[str, Any]
) -> None:
    ran = document(potluck(three[0], "generate", "--cluster", first, *PROMPT, FEW, "--json"))
    assert ran["token_ids"] == expected["token_ids"][:FEW]
    assert ran["remote_layers_per_token"] > 0
    status = document(potluck(three[0], "status", first, "--json"))
    states = {box["node"]: box["state"] for box in status["boxes"]}
    assert states == {"h1": "up", "h2": "ready", "h3": "ready"}
    assert status["lost_experts"] == 0


def test_a_run_goes_on_without_ray_and_up_starts_that_again(
    three: tuple[Host, ...], first: Path, expected: dict[str, Any], plan: Path
) -> None:
    head, second, third = three
    run = head.popen(command("generate", "--cluster", first, *PROMPT, MANY), stdout=subprocess.PIPE)
    assert run.stdout is not None
    began = run.stdout.read(1)
    os.kill(pid_of(head, "gcs_server"), signal.SIGKILL)
    os.kill(pid_of(third, "/raylet/raylet"), signal.SIGKILL)
    assert (began + run.stdout.read()).strip() == expected["text"].strip()
    assert run.wait() == 0
    before = running(first)["workers"]
    up = document(potluck(head, "up", first, "--model", MODEL, "--plan", plan, "--json"))
    assert up["missing"] == {}
    assert running(first)["workers"] == before
    for host in (second, third):
        wait_until(lambda host=host: pid_of(host, "ray::NodeActor") > 0)  # type: ignore[misc]


def test_another_cluster_on_the_same_boxes_comes_and_goes_and_both_leave_nothing(
    three: tuple[Host, ...], first: Path, expected: dict[str, Any], plan: Path
) -> None:
    head = three[0]
    other = write_cluster_file(head.home, three, name="other", port=23461)
    try:
        document(potluck(head, "up", other, "--model", MODEL, "--plan", plan, "--json"))
        ran = document(potluck(head, "generate", "--cluster", other, *PROMPT, FEW, "--json"))
        assert ran["token_ids"] == expected["token_ids"][:FEW]
    finally:
        down = document(potluck(head, "down", other, "--json"))
    assert all(box["clean"] and box["ended"] for box in down["boxes"].values())
    before = running(first)["workers"]
    ran = document(potluck(head, "generate", "--cluster", first, *PROMPT, FEW, "--json"))
    assert ran["token_ids"] == expected["token_ids"][:FEW]
    assert running(first)["workers"] == before
    down = document(potluck(head, "down", first, "--json"))
    assert all(box["clean"] and box["ended"] for box in down["boxes"].values())
    check_nothing_is_left(three)
