"""Workers under a real Ray: they serve, they fail with a reason, and nothing of them is left."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray

from orchestrator import cluster as cluster_module
from orchestrator.launch.ray_workers import RayCluster, RunningWorkers
from placement.errors import PlanError, WorkerStartError
from placement.model_shape import ModelShape
from placement.plan import Plan
from placement.plan_file import write_plan
from tests.orchestrator.command_line import Potluck, document
from tests.orchestrator.processes import DEADLINE_S, MARK, is_running, marked, wait_until
from tests.orchestrator.random_plan import random_plan
from tests.tiny_checkpoint import write_random_checkpoint
from transport.expert_rows import ExpertRows
from transport.messages import ForwardReply
from workers.model_config import Step35Config

# In one process of several: Rays that start at once take each other's time.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]

PATIENCE_S = 600.0


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(tmp_path_factory.mktemp("model"), seed=3, tokenizer=True)


@pytest.fixture(scope="module")
def shape(model_dir: Path) -> ModelShape:
    return Step35Config.load(model_dir).shape("tiny")


@pytest.fixture
def plan(shape: ModelShape) -> Plan:
    return random_plan(shape, 2, seed=4)


@pytest.fixture(scope="module", autouse=True)
def nothing_left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No process started by these tests outlives them, and no ~/.ray is made; a busy machine has its time."""
    home, name = tmp_path_factory.mktemp("home"), "test_cluster"
    with pytest.MonkeyPatch.context() as patch:
        for limit in ("START_TIMEOUT_S", "HELLO_TIMEOUT_S", "HEALTH_TIMEOUT_S"):
            patch.setattr(cluster_module, limit, PATIENCE_S)
        patch.setenv("HOME", str(home))
        patch.setenv(MARK, f"{name}-{os.getpid()}")
        yield
        wait_until(lambda: not marked(f"{name}-{os.getpid()}"))
    assert not (home / ".ray").exists()


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    """One Ray for all tests below, in this process."""
    with RayCluster() as started:
        yield started


@contextmanager
def stopped_after(workers: RunningWorkers) -> Iterator[RunningWorkers]:
    """Stop the workers at the end of the block, twice: the second is harmless."""
    try:
        yield workers
    finally:
        workers.stop()
        workers.stop()


def check_answers(workers: RunningWorkers, plan: Plan, shape: ModelShape) -> None:
    """Each worker holds what the plan says and answers for it."""
    clients = workers.connect()
    assert sorted(clients) == [worker.name for worker in plan.asked_workers]
    for name, client in clients.items():
        experts = plan.experts_of(name)
        layer, ids = next(iter(experts.items()))
        expert_ids = np.full((1, shape.top_k), -1, np.int32)
        expert_ids[0, 0] = ids[0]
        hidden = np.ones((1, shape.hidden_size), np.float32)
        weights = np.ones((1, shape.top_k), np.float32)
        rows = ExpertRows(hidden, expert_ids, weights, np.array([-18], np.int32))
        client.send_forward(1, 0, layer, rows)
        reply = client.wait(DEADLINE_S)
        assert isinstance(reply, ForwardReply), reply
        assert np.any(reply.values)
        held = plan.experts_per_tier()[list(plan.worker(name).tiers)]
        assert workers.infos[name].num_experts == held.sum()
    for name, health in workers.health().items():
        assert health is not None
        assert (health.name, health.running, health.served) == (name, True, 1)


def test_a_joined_ray_is_served_encrypted_on_the_nodes_address(
    cluster: RayCluster, shape: ModelShape, model_dir: Path
) -> None:
    """As in a cluster of several machines; the Ray that was joined goes on, as the tests below need."""
    plan = random_plan(shape, 1, seed=4)
    with RayCluster("auto") as joined:
        workers = joined.start_workers(plan, shape, model_dir)
        check_answers(workers, plan, shape)
        assert all(info.public_key for info in workers.infos.values())
        assert not any("127.0.0.1" in info.endpoint for info in workers.infos.values())
    assert ray.is_initialized()


@pytest.mark.parametrize("wire", ["ipc", pytest.param("tcp", marks=pytest.mark.long)])
def test_workers_start_serve_and_stop(
    wire: str, cluster: RayCluster, plan: Plan, shape: ModelShape, model_dir: Path
) -> None:
    with stopped_after(
        cluster.start_workers(plan, shape, model_dir, wire=wire)  # type: ignore[arg-type]
    ) as workers:
        check_answers(workers, plan, shape)
        pids = [info.pid for info in workers.infos.values()]
        assert all(info.endpoint.startswith(wire) for info in workers.infos.values())
        if wire == "ipc":
            directory = Path(next(iter(workers.infos.values())).endpoint.removeprefix("ipc://")).parent
            assert directory.stat().st_mode & 0o077 == 0
    wait_until(lambda: not any(map(is_running, pids)))


@pytest.mark.usefixtures("cluster")
def test_the_command_gives_the_ids_that_one_process_gives_and_leaves_no_worker(
    model_dir: Path, potluck: Potluck
) -> None:
    arguments = ("generate", "--model", model_dir, "--token-ids", "5,6,7", "--max-tokens", 20)
    arguments += ("--ignore-eos", "--json")
    spread = document(potluck(*arguments, "--workers", 2, "--mtp", 3))
    wait_until(lambda: not worker_processes())
    assert spread["token_ids"] == document(potluck(*arguments, "--workers", 0))["token_ids"]
    assert spread["remote_layers_per_token"] > 0
    assert [worker["name"] for worker in spread["workers"]] == ["worker-0", "worker-1"]
    assert sum(worker["share_of_activations"] for worker in spread["workers"]) == pytest.approx(1.0)


@pytest.mark.usefixtures("cluster")
def test_a_plan_for_several_boxes_runs_on_this_one(
    plan: Plan, model_dir: Path, potluck: Potluck, tmp_path: Path
) -> None:
    """No node of Ray bears the plan's names; without --ray-address none needs to."""
    apart = replace(plan, tiers=tuple(replace(tier, node=f"box-{tier.name}") for tier in plan.tiers))
    write_plan(apart, tmp_path / "plan.json")
    arguments = ("generate", "--model", model_dir, "--token-ids", "5,6,7", "--max-tokens", 6, "--ignore-eos")
    code, out, err = potluck(*arguments, "--plan", tmp_path / "plan.json")
    assert code == 0, err
    count = len(plan.asked_workers)
    assert f"starting {count} workers on this machine; --ray-address starts them on the plan's boxes" in err
    assert out == potluck(*arguments, "--dtype", "float32")[1]
    wait_until(lambda: not worker_processes())


def test_a_device_that_this_release_cannot_use_is_told_and_the_others_are_stopped(
    cluster: RayCluster, plan: Plan, shape: ModelShape, model_dir: Path
) -> None:
    tiers = tuple(replace(tier, device="cuda:7") if tier.name == "w1" else tier for tier in plan.tiers)
    workers = cluster.start_workers(replace(plan, tiers=tiers), shape, model_dir)
    with pytest.raises(WorkerStartError, match=r"worker w1: .*cuda:7.* plan with devices of kind ram"):
        workers.connect()
    wait_until(lambda: not worker_processes())


def test_a_box_of_two_devices_is_one_process(cluster: RayCluster, shape: ModelShape, model_dir: Path) -> None:
    boxed = random_plan(shape, 1, seed=4, devices=2)
    with stopped_after(cluster.start_workers(boxed, shape, model_dir)) as workers:
        check_answers(workers, boxed, shape)
        assert len(workers.infos) == 1


def test_a_plan_for_another_model_is_refused_before_anything_starts(
    cluster: RayCluster, plan: Plan, shape: ModelShape, model_dir: Path
) -> None:
    with pytest.raises(PlanError):
        cluster.start_workers(replace(plan, fingerprint="0" * 16), shape, model_dir)


def test_a_worker_that_is_killed_while_it_starts_is_named_and_the_rest_stopped(
    cluster: RayCluster, plan: Plan, shape: ModelShape, model_dir: Path
) -> None:
    wait_until(lambda: not worker_processes())
    workers = cluster.start_workers(plan, shape, model_dir)
    wait_until(lambda: bool(worker_processes()))
    worker_processes()[0].kill()
    with pytest.raises(WorkerStartError, match=r"worker w\d: its process died"):
        workers.connect()
    wait_until(lambda: not worker_processes())


def worker_processes() -> list[psutil.Process]:
    """Workers that this process has started, whatever they are doing."""
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            if child.name().startswith("ray::Worker") and child.status() != psutil.STATUS_ZOMBIE:
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found
