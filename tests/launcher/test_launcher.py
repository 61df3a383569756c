"""Three hosts with ssh between them become a cluster, by Ray's launcher and by ours; nothing is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from benchmarks.cluster_of_hosts import write_cluster_file
from benchmarks.namespaces import Host
from orchestrator.cluster.keys_folder import ensure_keys
from orchestrator.cluster.ray_env import ray_environment
from tests.launcher.hosts import hosts_or_skip
from tests.orchestrator.processes import ROOT, wait_until

pytestmark = [pytest.mark.long, pytest.mark.xdist_group("launcher")]

MODEL = ROOT / "models" / "potluck-tiny"
PROMPT = ("--prompt", "The following options", "--ignore-eos", "--max-tokens")
FEW, MANY = 24, 400
PATIENCE_S = 600.0


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
    """One for all clusters here: they differ in nothing that it asks for."""
    path = three[0].home / "plan.json"
    file = write_cluster_file(three[0].home, three, name="planned")
    code, _, err = potluck(three[0], "plan", file, "--model", MODEL, "--policy", "uniform", "--out", path)
    assert code == 0, err
    return path


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


def potluck(host: Host, *arguments: object, settings: str = "") -> tuple[int, str, str]:
    """Run a command on a host: exit code, standard output, standard error."""
    done = host.run(command(*arguments, settings=settings), check=False, timeout_s=PATIENCE_S)
    return done.returncode, done.stdout, done.stderr


def command(*arguments: object, settings: str = "") -> str:
    """What a shell runs for one of ours."""
    words = " ".join(f"'{word}'" for word in arguments)
    program = f"{sys.executable} -c 'from orchestrator.cli.main import main; main()'"
    return f"cd / && PYTHONPATH={ROOT} {settings} {program} {words}"


def document(result: tuple[int, str, str]) -> dict[str, Any]:
    """The one JSON document that a command printed, and nothing besides."""
    code, out, err = result
    assert code == 0, err
    parsed: dict[str, Any] = json.loads(out)
    return parsed


def running(file: Path) -> dict[str, Any]:
    """What is noted of a cluster."""
    parsed: dict[str, Any] = json.loads((file.parent / ".potluck" / file.stem / "run.json").read_text())
    return parsed


def pid_of(host: Host, name: str) -> int:
    """Of the one process there whose command line has a name in it."""
    (pid,) = [pid for pid, line in host.pids().items() if name in line]
    return pid


def check_nothing_is_left(hosts: tuple[Host, ...]) -> None:
    secrets = r"find ~ -path ~/.ssh -prune -o \( -name '*.key' -o -name token -o -name '*.crt' \) -print"
    for host in hosts:
        wait_until(lambda host=host: list(host.pids()) == [host.init])  # type: ignore[misc]
        listening = host.run("ss -ltnxH").stdout.splitlines()
        assert [line for line in listening if f"{host.address}:22" not in line] == []
        assert host.run("ls /dev/shm").stdout == ""
        assert host.run(secrets).stdout == ""


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


def test_rays_own_launcher_brings_it_up_and_a_run_starts_its_workers(
    three: tuple[Host, ...], expected: dict[str, Any], plan: Path
) -> None:
    head = three[0]
    folder = head.home / "files"
    folder.mkdir()
    file = write_cluster_file(folder, three, name="rays", port=23470)
    state = folder / ".potluck" / "rays"
    ensure_keys(state, "rays", {host.name: host.address for host in three}, datetime.now(UTC))
    ray = f"RAY_UP_enable_autoscaler_v2=0 {sys.executable} -c 'from ray.scripts.scripts import main; main()'"
    head.run(f"{ray} up -y --no-config-cache {file}", timeout_s=PATIENCE_S)
    try:
        settings = " ".join(
            f"{name}={value}" for name, value in ray_environment("$HOME/.potluck/rays").items()
        )
        arguments = (
            "--model",
            MODEL,
            "--plan",
            plan,
            "--ray-address",
            f"{head.address}:23470",
            *PROMPT,
            FEW,
            "--json",
        )
        # Ray's launcher starts the other boxes behind its command's back.
        for host in three:
            wait_until(lambda host=host: "/raylet/raylet" in " ".join(host.pids().values()), PATIENCE_S)  # type: ignore[misc]

        def runs() -> bool:
            code, out, err = potluck(head, "generate", *arguments, settings=settings)
            assert code == 0 or "0 of Ray's nodes are called" in err, err
            return code == 0 and json.loads(out)["token_ids"] == expected["token_ids"][:FEW]

        wait_until(runs, PATIENCE_S)
    finally:
        head.run(f"{ray} down -y {file}", check=False, timeout_s=PATIENCE_S)
        # Ray's own `down` leaves the other boxes' processes for a while.
        document(potluck(head, "down", file, "--json"))
    check_nothing_is_left(three)
