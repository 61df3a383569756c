"""A kept worker runs whatever happens to it or to its keeper, until it is stopped."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from orchestrator.launch import kept_worker
from orchestrator.launch.detached import start_detached
from orchestrator.launch.kept_worker import EVENTS, ORDER, PROCESS, KeptWorker, events, running_process
from tests.orchestrator.damaged import DAMAGED
from tests.orchestrator.processes import is_running, wait_until
from tests.orchestrator.random_plan import random_plan
from tests.tiny_checkpoint import write_random_checkpoint
from transport.messages import WireLimits
from workers.model_config import Step35Config
from workers.spec import WorkerSpec

pytestmark = pytest.mark.usefixtures("quick_workers")


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> WorkerSpec:
    model = write_random_checkpoint(tmp_path_factory.mktemp("model"), seed=3)
    shape = Step35Config.load(model).shape("tiny")
    plan = random_plan(shape, 1, seed=4)
    where = {"model_dir": str(model), "endpoint": "tcp://127.0.0.1:*", "pulse_endpoint": "tcp://127.0.0.1:*"}
    return WorkerSpec.of_plan(plan, plan.asked_workers[0].name, WireLimits.for_shape(shape), **where)


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[KeptWorker]:
    keeper = KeptWorker(tmp_path)
    yield keeper
    keeper.stop()
    assert running_process(tmp_path) is None


def wait_ready(kept: KeptWorker) -> int:
    wait_until(lambda: kept.state().state in ("ready", "failed"))
    state = kept.state()
    assert state.state == "ready", state.message
    return state.pid


def test_it_is_started_again_at_the_same_endpoints_when_it_dies(kept: KeptWorker, spec: WorkerSpec) -> None:
    kept.keep(spec)
    first = wait_ready(kept)
    before = kept.state().info
    assert before is not None
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: kept.state().pid not in (0, first))
    second = wait_ready(kept)
    after = kept.state().info
    assert after is not None
    assert second != first
    assert (before["endpoint"], before["pulse_endpoint"]) == (after["endpoint"], after["pulse_endpoint"])
    assert before["instance"] != after["instance"]


def test_whoever_asks_again_while_it_is_dead_does_not_start_it_a_second_time(
    kept: KeptWorker, spec: WorkerSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept.keep(spec)
    first = wait_ready(kept)
    before = kept.state().info
    # So long that only being asked for it ends the pause.
    monkeypatch.setattr("orchestrator.launch.pause.FIRST_S", 1000.0)
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: kept.state().state == "died")
    kept.keep(spec)
    assert kept.state().state == "starting"
    kept.keep(spec)
    assert wait_ready(kept) != first
    after = kept.state().info
    assert kept.state().starts == 2
    assert before is not None
    assert after is not None
    assert (before["endpoint"], before["pulse_endpoint"]) == (after["endpoint"], after["pulse_endpoint"])


def test_one_that_could_not_load_is_started_anew_where_it_was(
    kept: KeptWorker, spec: WorkerSpec, tmp_path: Path
) -> None:
    model = Path(spec.model_dir)
    moved, spec = tmp_path / "model", replace(spec, model_dir=str(tmp_path / "model"))
    moved.symlink_to(model)
    kept.keep(spec)
    first = wait_ready(kept)
    before = kept.state().info
    moved.unlink()
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: kept.state().state == "failed")
    moved.symlink_to(model)
    kept.keep(spec)
    wait_ready(kept)
    after = kept.state().info
    assert before is not None
    assert after is not None
    assert (before["endpoint"], before["pulse_endpoint"]) == (after["endpoint"], after["pulse_endpoint"])


def test_a_full_disk_leaves_no_process_that_nobody_knows_and_is_no_end(
    kept: KeptWorker, spec: WorkerSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[int] = []
    write = kept_worker._write

    def full_at_first(path: Path, document: Mapping[str, Any]) -> None:
        if path.name == PROCESS:
            started.append(int(document["pid"]))
            if len(started) == 1:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, document)

    monkeypatch.setattr(kept_worker, "_write", full_at_first)
    kept.keep(spec)
    wait_until(lambda: kept.state().state == "ready")
    assert started[1:] == [kept.state().pid]
    assert not is_running(started[0])


def test_it_is_no_child_and_another_keeper_finds_it_where_it_runs(
    kept: KeptWorker, spec: WorkerSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_worker, "start_detached", start_detached)
    kept.keep(spec)
    pid = wait_ready(kept)
    assert pid not in {child.pid for child in psutil.Process().children(recursive=True)}
    assert os.getsid(pid) == pid
    # As where Ray starts the actor again: nothing but the folder is left of the first keeper.
    other = KeptWorker(tmp_path)
    assert wait_ready(other) == pid
    other.keep(spec)
    assert wait_ready(other) == pid
    assert other.state().starts == 0


def test_another_order_ends_it_and_starts_the_other(kept: KeptWorker, spec: WorkerSpec) -> None:
    kept.keep(spec)
    first = wait_ready(kept)
    kept.keep(replace(spec, num_threads=2))
    assert wait_ready(kept) != first
    assert not psutil.pid_exists(first)


def test_it_says_why_it_does_not_start(kept: KeptWorker, spec: WorkerSpec, tmp_path: Path) -> None:
    kept.keep(replace(spec, model_dir=str(tmp_path / "nowhere")))
    wait_until(lambda: kept.state().state == "failed")
    assert "nowhere" in kept.state().message


def test_one_that_was_told_to_end_stays_ended_until_it_is_wanted_again(
    kept: KeptWorker, spec: WorkerSpec
) -> None:
    kept.keep(spec)
    pid = wait_ready(kept)
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: kept.state().state == "ended")
    assert kept.state().message == "told to end"
    assert kept.state().starts == 1
    kept.keep(spec)
    assert wait_ready(kept) != pid


def test_where_its_order_is_gone_it_is_not_started_again(
    kept: KeptWorker, spec: WorkerSpec, tmp_path: Path
) -> None:
    kept.keep(spec)
    pid = wait_ready(kept)
    (tmp_path / ORDER).unlink()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: kept.state().state == "died")
    kept.stop()
    assert running_process(tmp_path) is None


@pytest.mark.parametrize("content", DAMAGED)
def test_what_was_noted_of_a_worker_may_be_damaged(tmp_path: Path, content: bytes) -> None:
    for name in (ORDER, PROCESS, EVENTS):
        (tmp_path / name).write_bytes(content)
    assert running_process(tmp_path) is None
    assert events(tmp_path) == []
    kept = KeptWorker(tmp_path)
    assert kept.state().state == "none"
    kept.stop()
    assert not (tmp_path / ORDER).exists()
