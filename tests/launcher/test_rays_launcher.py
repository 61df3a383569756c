"""Three hosts with ssh between them become a cluster by Ray's own launcher; nothing is left."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from benchmarks.cluster_of_hosts import write_cluster_file
from benchmarks.namespaces import Host
from orchestrator.cluster.keys_folder import ensure_keys
from orchestrator.cluster.ray_env import ray_environment
from tests.launcher.commands import FEW, MODEL, PATIENCE_S, PROMPT, check_nothing_is_left, planned, potluck
from tests.launcher.hosts import hosts_or_skip
from tests.orchestrator.command_line import document
from tests.orchestrator.processes import wait_until

pytestmark = [pytest.mark.long, pytest.mark.xdist_group("launcher")]


@pytest.fixture(scope="module")
def three() -> Iterator[tuple[Host, ...]]:
    with hosts_or_skip(3, "10.34.2.0/24") as made:
        yield made


def test_rays_own_launcher_brings_it_up_and_a_run_starts_its_workers(
    three: tuple[Host, ...],
) -> None:
    head = three[0]
    plan = planned(three)
    expected = document(potluck(head, "generate", "--model", MODEL, *PROMPT, FEW, "--json"))["token_ids"]
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
            return code == 0 and json.loads(out)["token_ids"] == expected

        wait_until(runs, PATIENCE_S)
    finally:
        head.run(f"{ray} down -y {file}", check=False, timeout_s=PATIENCE_S)
        # Ray's own `down` leaves the other boxes' processes for a while.
        document(potluck(head, "down", file, "--json"))
    check_nothing_is_left(three)
