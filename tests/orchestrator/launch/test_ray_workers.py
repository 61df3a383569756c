"""Workers under a real Ray: they serve, they fail with a reason, and nothing of them is left."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import psutil
import pytest
import zmq

from orchestrator.dispatch.view import WorkerAddress
from orchestrator.launch import workers as workers_module
from orchestrator.launch.ray_workers import RayWorkers, ray_workers
from placement.errors import PlanError, WorkerStartError
from placement.model_shape import ModelShape
from placement.plan import Plan
from tests.orchestrator.processes import DEADLINE_S, MARK, marked, wait_until
from tests.orchestrator.random_plan import random_plan
from tests.tiny_checkpoint import write_random_checkpoint
from transport.client import WorkerClient
from transport.expert_rows import ExpertRows
from transport.keys import HeadKeys, KeyPair
from transport.messages import ForwardReply, WireLimits
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
    home, name = tmp_path_factory.mktemp("home"), "test_ray_workers"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers_module, "START_TIMEOUT_S", PATIENCE_S)
        patch.setenv("HOME", str(home))
        patch.setenv(MARK, f"{name}-{os.getpid()}")
        yield
        wait_until(lambda: not marked(f"{name}-{os.getpid()}"))
    assert not (home / ".ray").exists()


@pytest.fixture(scope="module", autouse=True)
def one_ray() -> Iterator[str]:
    """One Ray for all tests below, started by this process; its address."""
    # Here, since every process of pytest collects all tests, and this loads Ray.
    from benchmarks.local_ray import local_ray

    with local_ray() as address:
        yield address


def check_answers(workers: RayWorkers, plan: Plan, shape: ModelShape) -> None:
    """Each worker holds what the plan says and answers for it."""
    addresses = workers.wait_ready()
    assert sorted(addresses) == [worker.name for worker in plan.asked_workers]
    for name, address in addresses.items():
        layer, ids = next(iter(plan.experts_of(name).items()))
        expert_ids = np.full((1, shape.top_k), -1, np.int32)
        expert_ids[0, 0] = ids[0]
        hidden = np.ones((1, shape.hidden_size), np.float32)
        weights = np.ones((1, shape.top_k), np.float32)
        rows = ExpertRows(hidden, expert_ids, weights, np.array([-18], np.int32))
        assert address.public_key is not None
        keys = HeadKeys(workers.keys, address.public_key)
        with zmq.Context() as context:
            limits = WireLimits.for_shape(shape)
            client = WorkerClient(context, address.endpoint, limits, name=name, keys=keys)
            try:
                assert client.hello(DEADLINE_S).instance == address.instance
                client.send_forward(1, 0, layer, rows)
                reply = client.wait(DEADLINE_S)
            finally:
                client.close()
        assert isinstance(reply, ForwardReply), reply
        assert np.any(reply.values)


def test_workers_serve_encrypted_on_the_nodes_address_and_start_again_where_they_were(
    plan: Plan, shape: ModelShape, model_dir: Path, one_ray: str
) -> None:
    """As in a cluster of several machines; the Ray that was joined goes on, as the tests below need."""
    with ray_workers(plan, shape, model_dir, one_ray) as workers:
        check_answers(workers, plan, shape)
        assert not any("127.0.0.1" in info.endpoint for info in workers.infos.values())
        before = workers.wait_ready()
        killed = worker_processes()[0]
        killed.kill()
        wait_until(lambda: len(worker_processes()) == len(before))
        check_the_one_that_was_killed_was_started_again(workers, before, shape, killed.pid)
    import ray

    assert ray.is_initialized()
    assert not list(Path.home().glob(".potluck/run-*"))
    wait_until(lambda: not worker_processes())


def test_a_device_that_this_release_cannot_use_is_told_and_the_others_are_stopped(
    plan: Plan, shape: ModelShape, model_dir: Path, one_ray: str
) -> None:
    tiers = tuple(replace(tier, device="cuda:7") if tier.name == "w1" else tier for tier in plan.tiers)
    with (
        ray_workers(replace(plan, tiers=tiers), shape, model_dir, one_ray) as workers,
        pytest.raises(WorkerStartError, match=r"worker w1: .*cuda:7.* plan with devices of kind vram"),
    ):
        workers.wait_ready()
    wait_until(lambda: not worker_processes())


def test_a_plan_for_another_model_is_refused_before_anything_starts(
    plan: Plan, shape: ModelShape, model_dir: Path, one_ray: str
) -> None:
    with (
        pytest.raises(PlanError),
        ray_workers(replace(plan, fingerprint="0" * 16), shape, model_dir, one_ray),
    ):
        pass


def check_the_one_that_was_killed_was_started_again(
    workers: RayWorkers, before: Mapping[str, WorkerAddress], shape: ModelShape, killed: int
) -> None:
    """At the same endpoint; the others go on."""
    for name, address in before.items():
        assert address.public_key is not None
        with zmq.Context() as context:
            keys = HeadKeys(workers.keys, address.public_key)
            limits = WireLimits.for_shape(shape)
            client = WorkerClient(context, address.endpoint, limits, name=name, keys=keys)
            try:
                is_another = client.hello(DEADLINE_S).instance != address.instance
                assert is_another == (workers.infos[name].pid == killed)
            finally:
                client.close()


def worker_processes() -> list[psutil.Process]:
    """Workers that these tests have started, whatever they are doing."""
    found = []
    for pid in marked(f"test_ray_workers-{os.getpid()}"):
        try:
            process = psutil.Process(pid)
            if "workers.serve" in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def test_a_worker_that_its_actor_knows_nothing_of_is_not_waited_for() -> None:
    """The actor was started again after the worker had ended."""
    running = RayWorkers(
        Mock(**{"state.return_value": {"state": "none", "message": ""}}),
        KeyPair.make(),
        time.monotonic() + DEADLINE_S,
    )
    spec: Any = SimpleNamespace(name="w0", to_json=lambda: "")
    node: Any = SimpleNamespace(id="n")
    running.start(spec, node, "runs/1/w0")
    with pytest.raises(WorkerStartError, match="w0: its worker ended"):
        running.wait_ready()
