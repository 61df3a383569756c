"""What surrounds Ray: signals while stopping, and the settings that are put back."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray

from orchestrator.local_ray import joined_ray, local_ray
from orchestrator.run_folder import MAX_TEMP_DIR_CHARS, remove_abandoned
from orchestrator.stopping import STOP_SIGNALS
from placement.errors import WorkerStartError
from tests.orchestrator.processes import DEADLINE_S, run, wait_until

# In one process of several: Rays that start at once take each other's time.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]

IDLE = """
    import signal
    from orchestrator.local_ray import local_ray
    from orchestrator.stopping import stop_by_exception
    stop_by_exception()
    with local_ray():
        print("started", flush=True)
        signal.pause()
"""


def test_ray_leaves_environment_signals_and_files_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, deep = tmp_path / "home", tmp_path / ("deep" * MAX_TEMP_DIR_CHARS)
    home.mkdir()
    deep.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    environment, handlers = dict(os.environ), [signal.getsignal(number) for number in STOP_SIGNALS]
    with local_ray() as directory:
        assert ray.is_initialized()
        # Ray's sockets would not fit below a long TMPDIR.
        assert len(str(directory.parent)) <= MAX_TEMP_DIR_CHARS
        assert os.environ["RAY_AUTH_MODE"] == "token"
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        with local_ray() as second:
            assert second != directory
        assert ray.is_initialized()
    assert not ray.is_initialized()
    assert not directory.exists()
    assert dict(os.environ) == environment
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == handlers
    assert list(home.iterdir()) == []


def test_a_cluster_that_is_not_there_is_named() -> None:
    with (
        pytest.raises(WorkerStartError, match=r"^Ray at 127\.0\.0\.1:1: .*run `ray up`"),
        joined_ray("127.0.0.1:1"),
    ):
        pytest.fail("joined")


@pytest.fixture
def short_tmp() -> Iterator[Path]:
    """A temporary directory whose path is short enough for Ray's sockets."""
    with tempfile.TemporaryDirectory(prefix="p", dir="/tmp") as name:
        yield Path(name)


def starts(process: subprocess.Popen[str], name: str) -> bool:
    """Whether a child of this name has been started."""
    assert process.poll() is None, process.stderr.read() if process.stderr else ""
    return any(name in child.name() for child in psutil.Process(process.pid).children())


def uses(folder: Path) -> list[str]:
    """Command lines of processes that were started with something below the folder."""
    lines = [" ".join(found.info["cmdline"] or []) for found in psutil.process_iter(["cmdline"])]
    return [line for line in lines if str(folder) in line]


@pytest.mark.parametrize(
    ("number", "child", "times"),
    [
        (signal.SIGHUP, "raylet", 1),
        pytest.param(signal.SIGTERM, "gcs_server", 1, marks=pytest.mark.long),
        pytest.param(signal.SIGINT, "gcs_server", 2, marks=pytest.mark.long),
    ],
)
def test_a_signal_while_ray_starts_ends_it_and_leaves_nothing(
    number: signal.Signals, child: str, times: int, short_tmp: Path
) -> None:
    with run(IDLE, environment={"TMPDIR": str(short_tmp)}) as process:
        wait_until(lambda: starts(process, child))
        for _ in range(times):
            if number is signal.SIGTERM:
                process.send_signal(number)
            else:
                # As a terminal does: to the whole group.
                os.killpg(process.pid, number)
        out, err = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, out, err) == (128 + number, "", "")
    assert list(short_tmp.iterdir()) == []
    assert uses(short_tmp) == []


def test_what_a_killed_head_leaves_ends_and_its_folder_goes_with_the_next_start(short_tmp: Path) -> None:
    """Folders of heads that run stay, as tests/orchestrator/test_run_folder.py says."""
    # Ray's agents end when they have looked for their head as long as this, a minute if nothing is said.
    environment = {"TMPDIR": str(short_tmp), "RAY_gcs_rpc_server_reconnect_timeout_s": "2"}
    with run(IDLE, environment=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        process.kill()
        process.wait(DEADLINE_S)
    assert len(list(short_tmp.iterdir())) == 1
    wait_until(lambda: not uses(short_tmp))
    remove_abandoned(str(short_tmp))
    assert list(short_tmp.iterdir()) == []
