"""Worker processes of this machine: they serve, come back, fail with a reason, and nothing is left."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zmq

from orchestrator.dispatch.view import WorkerAddress
from orchestrator.launch import local
from orchestrator.launch.local import LocalWorkers, local_workers
from orchestrator.launch.spawn import spawn
from orchestrator.run_folder import remove_abandoned
from placement.errors import PlanError, WorkerStartError
from placement.model_shape import ModelShape
from placement.plan import Plan
from tests.orchestrator.processes import DEADLINE_S, is_running, run, wait_until
from tests.orchestrator.random_plan import random_plan
from tests.tiny_checkpoint import write_random_checkpoint
from transport.client import WorkerClient
from transport.expert_rows import ExpertRows
from transport.messages import ForwardReply, HelloReply, WireLimits
from workers.model_config import Step35Config
from workers.spec import WorkerSpec

# But for tests of how processes start.
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_workers")]


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
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where run folders lie, its path short enough for sockets; nothing is left there."""
    with tempfile.TemporaryDirectory(prefix="p", dir="/tmp") as name:
        monkeypatch.setattr(tempfile, "tempdir", name)
        monkeypatch.setenv("TMPDIR", name)
        yield Path(name)


@pytest.fixture
def as_the_program_starts_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not quickly."""
    monkeypatch.setattr(local, "spawn", spawn)


@pytest.fixture(scope="module")
def running(shape: ModelShape, model_dir: Path, quick_workers: None) -> Iterator[LocalWorkers]:
    """Two workers, of a command that goes on beside those of the tests."""
    with local_workers(random_plan(shape, 2, seed=4), shape, model_dir) as workers:
        workers.wait_ready()
        yield workers


@contextmanager
def client_of(
    address: WorkerAddress, name: str, shape: ModelShape
) -> Iterator[tuple[WorkerClient, HelloReply]]:
    with zmq.Context() as context:
        client = WorkerClient(context, address.endpoint, WireLimits.for_shape(shape), name=name)
        try:
            yield client, client.hello(DEADLINE_S)
        finally:
            client.close()


def check_answers(workers: LocalWorkers, plan: Plan, shape: ModelShape) -> None:
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
        with client_of(address, name, shape) as (client, hello):
            assert hello.num_experts == sum(map(len, plan.experts_of(name).values()))
            client.send_forward(1, 0, layer, rows)
            reply = client.wait(DEADLINE_S)
        assert isinstance(reply, ForwardReply), reply
        assert np.any(reply.values)


@pytest.mark.usefixtures("as_the_program_starts_them")
def test_workers_start_serve_and_stop_and_those_of_another_command_do_not_see_it(
    plan: Plan, shape: ModelShape, model_dir: Path, temporary: Path, running: LocalWorkers
) -> None:
    with local_workers(plan, shape, model_dir) as workers:
        check_answers(workers, plan, shape)
        pids = list(workers.pids.values())
        assert len(pids) == 2
        [folder] = temporary.iterdir()
        assert folder.stat().st_mode & 0o077 == 0
        assert all(str(folder) in info.endpoint + info.pulse_endpoint for info in workers.infos.values())
        # In sessions of their own, so that Ctrl-C is not theirs.
        assert all(os.getsid(pid) == pid for pid in pids)
        ours = {info.endpoint for info in workers.infos.values()}
        assert ours.isdisjoint(info.endpoint for info in running.infos.values())
    assert not any(map(is_running, pids))
    assert list(temporary.iterdir()) == []
    check_answers(running, plan, shape)


def test_a_box_of_two_devices_is_one_process(shape: ModelShape, model_dir: Path) -> None:
    boxed = random_plan(shape, 1, seed=4, devices=2)
    with local_workers(boxed, shape, model_dir) as workers:
        check_answers(workers, boxed, shape)
        assert len(workers.infos) == 1


def test_a_worker_that_dies_is_started_again_where_it_was(shape: ModelShape, running: LocalWorkers) -> None:
    before = running.wait_ready()
    name, pid = next(iter(running.pids.items()))
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: running.infos[name].instance != before[name].instance)
    assert running.infos[name].pid != pid
    assert running.infos[name].endpoint == before[name].endpoint
    with client_of(before[name], name, shape) as (_, hello):
        assert hello.instance == running.infos[name].instance
    assert {other: info.instance for other, info in running.infos.items() if other != name} == {
        other: address.instance for other, address in before.items() if other != name
    }


def test_a_device_that_this_release_cannot_use_is_told_and_the_others_are_stopped(
    plan: Plan, shape: ModelShape, model_dir: Path
) -> None:
    tiers = tuple(replace(tier, device="cuda:7") if tier.name == "w1" else tier for tier in plan.tiers)
    with local_workers(replace(plan, tiers=tiers), shape, model_dir) as workers:
        with pytest.raises(WorkerStartError, match=r"^worker w1: .*cuda:7.* plan with devices of kind vram"):
            workers.wait_ready()
        assert not workers.pids


def test_a_plan_for_another_model_is_refused_before_anything_starts(
    plan: Plan, shape: ModelShape, model_dir: Path, temporary: Path
) -> None:
    wrong = replace(plan, fingerprint="0" * 16)
    with pytest.raises(PlanError), local_workers(wrong, shape, model_dir):
        pass
    assert list(temporary.iterdir()) == []


@pytest.mark.usefixtures("as_the_program_starts_them")
def test_a_worker_that_is_killed_while_it_starts_is_named_and_the_rest_stopped(
    plan: Plan, shape: ModelShape, model_dir: Path
) -> None:
    with local_workers(plan, shape, model_dir) as workers:
        wait_until(lambda: len(workers.pids) == 2)
        pids = list(workers.pids.values())
        os.kill(pids[0], signal.SIGKILL)
        with pytest.raises(WorkerStartError, match=r"^worker w\d: its process with \d+ experts died"):
            workers.wait_ready()
        assert not any(map(is_running, pids))


HEAD = """
    import signal, sys
    from pathlib import Path
    from orchestrator.launch.local import local_workers
    from orchestrator.stopping import stop_by_exception
    from tests.orchestrator.random_plan import random_plan
    from workers.model_config import Step35Config
    stop_by_exception()
    model_dir, when = Path(sys.argv[1]), sys.argv[2]
    shape = Step35Config.load(model_dir).shape("tiny")
    with local_workers(random_plan(shape, 2, seed=4), shape, model_dir) as workers:
        if when == "ready":
            workers.wait_ready()
        while len(workers.pids) < 2:
            pass
        print(*workers.pids.values(), flush=True)
        signal.pause()
"""


@pytest.mark.parametrize(
    ("when", "number"),
    [
        ("starting", signal.SIGINT),
        ("ready", signal.SIGKILL),
        *(
            pytest.param(when, number, marks=pytest.mark.long)
            for when, number in (
                ("starting", signal.SIGKILL),
                ("starting", signal.SIGTERM),
                ("starting", signal.SIGHUP),
                ("ready", signal.SIGINT),
                ("ready", signal.SIGTERM),
                ("ready", signal.SIGHUP),
            )
        ),
    ],
)
def test_nothing_is_left_however_the_head_ends(
    when: str, number: signal.Signals, model_dir: Path, temporary: Path
) -> None:
    """A killed head's folder goes with the next start."""
    with run(HEAD, model_dir, when) as process:
        assert process.stdout is not None
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert all(map(is_running, pids)), process.stderr
        # As a terminal does: to the whole group.
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
        _, err = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, err) == (-9 if number == signal.SIGKILL else 128 + number, "")
    wait_until(lambda: not any(map(is_running, pids)))
    if number == signal.SIGKILL:
        assert len(list(temporary.iterdir())) == 1
        remove_abandoned(str(temporary))
    assert list(temporary.iterdir()) == []


def test_a_worker_that_ended_for_want_of_a_head_is_there_again_when_the_head_goes_on(
    plan: Plan, shape: ModelShape, model_dir: Path, temporary: Path
) -> None:
    """As for a head that was stopped: its workers let go of their memory meanwhile."""
    spec = WorkerSpec.of_plan(
        plan,
        "w0",
        WireLimits.for_shape(shape),
        model_dir=str(model_dir),
        endpoint=f"ipc://{temporary}/0.data",
        pulse_endpoint=f"ipc://{temporary}/0.pulse",
        lifeline=True,
        linger_s=1.0,
    )
    workers = LocalWorkers([spec], DEADLINE_S)
    try:
        first = workers.wait_ready()["w0"].instance
        wait_until(lambda: workers.infos["w0"].instance != first)
    finally:
        workers.stop()
