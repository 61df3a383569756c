"""Workers under a real Ray: they serve, they fail with a reason, and nothing of them is left."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from orchestrator.cluster import RayCluster, RunningWorkers
from placement.errors import PlanError, WorkerStartError
from placement.model_shape import ModelShape
from placement.plan import LOCAL_WORKER, Plan
from tests.orchestrator.processes import DEADLINE_S, run, wait_until
from tests.orchestrator.random_plan import random_plan
from tests.tiny_checkpoint import write_random_checkpoint
from transport.messages import ForwardReply
from workers.model_config import Step35Config

pytestmark = pytest.mark.slow

# After kill -9 of its driver Ray's own agents take a minute to notice.
ORPHANED_S = 90.0


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(tmp_path_factory.mktemp("model"), seed=3)


@pytest.fixture(scope="module")
def shape(model_dir: Path) -> ModelShape:
    return Step35Config.load(model_dir).shape("tiny")


@pytest.fixture
def plan(shape: ModelShape) -> Plan:
    return random_plan(shape, 2, seed=4)


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """No process that began during the test outlives it, and ~/.ray is as it was."""
    home = Path.home() / ".ray"
    before, existed = set(psutil.pids()), home.exists()
    yield
    wait_until(lambda: not ray_processes(before), ORPHANED_S)
    assert home.exists() == existed


def ray_processes(before: set[int]) -> list[str]:
    """Command lines of Ray's processes that are not in `before`; its agents' have no path of the session."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline", "status"]):
        line = " ".join(process.info["cmdline"] or [])
        alive = process.info["status"] != psutil.STATUS_ZOMBIE
        if (
            process.info["pid"] not in before
            and alive
            and any(s in line for s in ("ray::", "raylet", "gcs_server"))
        ):
            found.append(line)
    return found


def check_answers(workers: RunningWorkers, plan: Plan, shape: ModelShape) -> None:
    """Each worker holds what the plan says and answers for it."""
    clients = workers.connect()
    assert sorted(clients) == [worker.name for worker in plan.workers if worker.name != LOCAL_WORKER]
    for name, client in clients.items():
        experts = plan.experts_of(name)
        layer, ids = next(iter(experts.items()))
        expert_ids = np.full((1, shape.top_k), -1, np.int32)
        expert_ids[0, 0] = ids[0]
        hidden = np.ones((1, shape.hidden_size), np.float32)
        weights = np.ones((1, shape.top_k), np.float32)
        client.send_forward(1, layer, hidden, expert_ids, weights, np.array([-18], np.int32))
        reply = client.wait(DEADLINE_S)
        assert isinstance(reply, ForwardReply), reply
        assert np.any(reply.values)
        assert workers.infos[name].num_experts == sum(map(len, experts.values()))
    for name, health in workers.health().items():
        assert health is not None
        assert (health.name, health.running, health.served) == (name, True, 1)


@pytest.mark.parametrize("wire", ["ipc", "tcp"])
def test_workers_start_serve_and_leave_nothing(
    wire: str, plan: Plan, shape: ModelShape, model_dir: Path
) -> None:
    with RayCluster() as cluster:
        workers = cluster.start_workers(plan, shape, model_dir, wire=wire)  # type: ignore[arg-type]
        check_answers(workers, plan, shape)
        pids = [info.pid for info in workers.infos.values()]
        directory = Path(next(iter(workers.infos.values())).endpoint.removeprefix("ipc://")).parent
        assert all(info.endpoint.startswith(wire) for info in workers.infos.values())
        if wire == "ipc":
            assert directory.stat().st_mode & 0o077 == 0
        workers.stop()
        workers.stop()
        wait_until(lambda: not any(map(is_running, pids)))
    assert wire == "tcp" or not directory.exists()


def is_running(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_one_ray_serves_several_plans_and_failures_and_a_second_cluster(
    plan: Plan, shape: ModelShape, model_dir: Path, tmp_path: Path
) -> None:
    with RayCluster() as cluster:
        # A checkpoint that is not there: its reason arrives, and the others are stopped.
        workers = cluster.start_workers(plan, shape, tmp_path / "nothing")
        with pytest.raises(WorkerStartError, match=r"worker w\d: .*nothing"):
            workers.connect()

        # A device that is not there, on one of two.
        broken = replace(
            plan,
            workers=tuple(
                replace(worker, device="cuda:7") if worker.name == "w1" else worker for worker in plan.workers
            ),
        )
        workers = cluster.start_workers(broken, shape, model_dir)
        with pytest.raises(WorkerStartError, match="worker w1: cannot hold its experts on device cuda:7"):
            workers.connect()

        # A plan for another model is refused before anything starts.
        with pytest.raises(PlanError):
            cluster.start_workers(replace(plan, fingerprint="0" * 16), shape, model_dir)

        # As in a cluster of several machines: on the node's address, encrypted.
        with RayCluster("auto") as joined:
            workers = joined.start_workers(plan, shape, model_dir)
            check_answers(workers, plan, shape)
            assert all(info.public_key for info in workers.infos.values())
            assert not any("127.0.0.1" in info.endpoint for info in workers.infos.values())
        check_answers(cluster.start_workers(plan, shape, model_dir), plan, shape)


def test_a_worker_that_is_killed_while_it_starts_is_named_and_the_rest_stopped(
    plan: Plan, shape: ModelShape, model_dir: Path
) -> None:
    with RayCluster() as cluster:
        workers = cluster.start_workers(plan, shape, model_dir)
        victims: list[psutil.Process] = []

        def found_one() -> bool:
            children = psutil.Process().children(recursive=True)
            victims.extend(child for child in children if child.name().startswith("ray::Worker"))
            return bool(victims)

        wait_until(found_one)
        victims[0].kill()
        with pytest.raises(WorkerStartError, match=r"worker w\d: its process died before it was ready"):
            workers.connect()
        wait_until(
            lambda: (
                not any(
                    child.name().startswith("ray::Worker") and child.status() != psutil.STATUS_ZOMBIE
                    for child in psutil.Process().children(recursive=True)
                )
            )
        )


def test_a_cluster_that_is_not_there_is_named() -> None:
    """In a process of its own: Ray gives up by raising, or by ending the process."""
    program = """
        import sys
        from orchestrator.cluster import RayCluster
        from placement.errors import WorkerStartError
        try:
            with RayCluster("127.0.0.1:1"):
                pass
        except WorkerStartError as error:
            sys.exit("Ray at 127.0.0.1:1" not in str(error))
        sys.exit(1)
    """
    assert run(program).wait(DEADLINE_S) == 0


IDLE = """
    import sys, time
    from pathlib import Path
    from orchestrator.cluster import RayCluster
    from tests.orchestrator.random_plan import random_plan
    from workers.model_config import Step35Config
    model_dir = Path(sys.argv[1])
    shape = Step35Config.load(model_dir).shape("tiny")
    plan = random_plan(shape, 2, seed=4)
    with RayCluster() as cluster:
        workers = cluster.start_workers(plan, shape, model_dir)
        workers.connect()
        print(*[info.pid for info in workers.infos.values()], flush=True)
        time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_the_process_that_started_them(number: signal.Signals, model_dir: Path) -> None:
    with run(IDLE, str(model_dir)) as process:
        assert process.stdout is not None
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert pids
        if number is signal.SIGINT:
            # As a terminal does: to the whole group, and more than once.
            os.killpg(process.pid, number)
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        process.wait(DEADLINE_S)
        wait_until(lambda: not any(map(is_running, pids)))
        if number is not signal.SIGKILL:
            assert ray_processes_of(process.pid) == []


def ray_processes_of(group: int) -> list[int]:
    """Processes of a process group: Ray's stay in their driver's, its workers in groups of their own."""
    found = []
    for process in psutil.process_iter(["pid", "status"]):
        try:
            in_group = os.getpgid(process.info["pid"]) == group
        except ProcessLookupError:
            continue
        if in_group and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process.info["pid"])
    return found
