"""The small process on the head's box that takes in boxes which arrive later.

It speaks to the workers, so that they stay between two runs; it brings up what misses, and writes down what
runs. It holds no expert and no run needs it. `potluck down` ends it.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from orchestrator.cluster.greet import Greeted, greet
from orchestrator.cluster.keys_folder import ensure_keys
from orchestrator.cluster.launcher_file import Launcher, load_launcher
from orchestrator.cluster.pool import Pool, Wanted
from orchestrator.cluster.private_files import read_private, write_private
from orchestrator.cluster.run_state import RunState, read_run_state, write_run_state
from orchestrator.cluster.ssh import Ssh
from orchestrator.launch.detached import start_detached
from orchestrator.launch.processes import end_process, find_process
from placement.errors import PotluckError
from placement.files.json_file import parse_json
from placement.plan_file import read_plan
from transport.messages import WireLimits, WorkerState
from workers.formats.digesting import DigestsBehind
from workers.formats.open_model import find_model

KEEPER, KEEPER_LOG, LOCK = "keeper.json", "keeper.log", "up.lock"
GREET_S = 5.0
# A box that misses is tried again after a pause, which doubles each time.
FIRST_PAUSE_S = 5.0
LONGEST_PAUSE_S = 60.0


@dataclass(frozen=True, slots=True)
class Keeping:
    """The keeper of a cluster, as it noted itself. `began`: its process's, in seconds since 1970."""

    pid: int
    began: float
    last_word: str = ""


@contextmanager
def only_one(folder: Path, *, waits: bool = True) -> Iterator[None]:
    """Be the only command that starts or ends a cluster's parts.

    Raises:
        BlockingIOError: another one does, and `waits` is false.
    """
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
        yield
    finally:
        os.close(handle)


def start_keeper(launcher: Launcher) -> int:
    """Start a cluster's keeper on this box, unless it runs; its pid."""
    folder = launcher.state_folder
    running = find_keeper(folder)
    if running is not None:
        return running.pid
    log = folder / KEEPER_LOG
    pid = start_detached(
        # The folder tells what runs on this box for the cluster that this process belongs to it.
        [
            "-m",
            "orchestrator.cluster.keeper",
            str(launcher.path.resolve()),
            os.path.expanduser(launcher.remote_folder),
        ],
        given="",
        output=log,
        log=log,
    )
    _note(folder, Keeping(pid, psutil.Process(pid).create_time()))
    return pid


def find_keeper(folder: Path) -> psutil.Process | None:
    """A cluster's keeper on this box, None where none runs."""
    keeping = read_keeping(folder)
    return None if keeping is None else find_process(keeping.pid, keeping.began)


def read_keeping(folder: Path) -> Keeping | None:
    """What the keeper noted of itself last; None where nothing is, or it is damaged."""
    content = read_private(folder / KEEPER)
    if content is None:
        return None
    try:
        keeping = Keeping(**parse_json(content.decode(), PotluckError, KEEPER, "what a keeper notes"))
    except (PotluckError, UnicodeDecodeError, TypeError):
        return None
    return keeping if isinstance(keeping.last_word, str) else None


def end_keeper(folder: Path) -> None:
    """Harmless where none runs."""
    process = find_keeper(folder)
    if process is not None:
        end_process(process)
    (folder / KEEPER).unlink(missing_ok=True)


def wanted_of(launcher: Launcher, state: RunState) -> Wanted:
    """What `potluck up` brought up, from what it noted.

    Raises:
        PotluckError: the plan or the model is not there any more.
    """
    plan = read_plan(state.plan)
    model = Path(state.model_path)
    shape = find_model(model).config.shape(plan.model)
    plan.check(shape)
    return Wanted(launcher, plan, Path(state.plan), shape, model)


class Pauses:
    """When each missing box is to be tried: first after a pause, in which it may be back by itself."""

    def __init__(self) -> None:
        self._pauses_s: dict[str, float] = {}
        self._next_s: dict[str, float] = {}

    def due(self, missing: Mapping[str, object], now_s: float) -> list[str]:
        """Those of the missing whose time has come; those that are back are forgotten."""
        for name in [name for name in self._pauses_s if name not in missing]:
            del self._pauses_s[name], self._next_s[name]
        for name in missing:
            if name not in self._pauses_s:
                self._pauses_s[name], self._next_s[name] = FIRST_PAUSE_S, now_s + FIRST_PAUSE_S
        found = [name for name in missing if now_s >= self._next_s[name]]
        for name in found:
            self._pauses_s[name] = min(2 * self._pauses_s[name], LONGEST_PAUSE_S)
            self._next_s[name] = now_s + self._pauses_s[name]
        return found


def keep(launcher: Launcher, ending: threading.Event) -> None:
    """Until told to end."""
    folder = launcher.state_folder
    keeping = Keeping(os.getpid(), psutil.Process().create_time())
    state = read_run_state(folder)
    wanted = wanted_of(launcher, state)
    keys = ensure_keys(folder, launcher.name, launcher.addresses)
    own = keys.pairs[launcher.spec.head]
    limits = WireLimits.for_shape(wanted.shape)
    pauses = Pauses()
    # Also where no worker of this box has the model.
    with Ssh() as ssh, DigestsBehind(wanted.model_path):

        def tell(line: str) -> None:
            print(time.strftime("%Y-%m-%d %H:%M:%S"), line, flush=True)
            _note(folder, Keeping(keeping.pid, keeping.began, line))

        pool = Pool(wanted, keys, ssh, tell, folder / KEEPER_LOG, started=state.started)
        pool.running = {worker.name: worker for worker in state.workers}
        pool.missing = dict(state.missing)
        noted = pool.state()
        tell(f"takes care of {len(wanted.workers)} workers")

        def note() -> None:
            nonlocal noted
            now = pool.state()
            if now != noted:
                _tell_changes(noted, now, tell)
                noted = now
                write_run_state(folder, noted)

        try:
            while True:
                restarted = note_silence(pool, greet(list(pool.running.values()), limits, own))
                # What misses is known now; to bring it up may take long.
                note()
                due = pauses.due(pool.missing, time.monotonic())
                if due or restarted:
                    with only_one(folder):
                        try:
                            pool.look_again(restarted)
                            if due:
                                pool.bring_up(due)
                        except PotluckError as error:
                            tell(str(error))
                    # A long-lived connection would keep Ray's client here for nothing.
                    pool.close()
                note()
                if ending.wait(GREET_S):
                    return
        finally:
            pool.close()


def note_silence(pool: Pool, answers: Mapping[str, Greeted]) -> list[str]:
    """Note what misses after workers were greeted; the nodes whose worker is ready as another process.

    The actor on its box started that one again. It is no reason to bring the box up, unless it cannot load.
    """
    restarted = []
    for name, answer in answers.items():
        running = pool.running[name]
        reply = answer.reply
        if reply is None:
            pool.missing.setdefault(running.node, f"{running.node}: {answer.why}")
        elif reply.instance == running.instance:
            pool.missing.pop(running.node, None)
        elif reply.state is WorkerState.FAILED:
            pool.missing[running.node] = f"{running.node}: {reply.text}"
        else:
            pool.missing.pop(running.node, None)
            if reply.state is WorkerState.READY:
                pool.running[name] = replace(running, instance=reply.instance)
                restarted.append(running.node)
    return restarted


def _tell_changes(before: RunState, after: RunState, tell: Any) -> None:
    for node, why in after.missing.items():
        if before.missing.get(node) != why:
            tell(f"misses {why}")
    for node in before.missing:
        if node not in after.missing:
            tell(f"{node} is back")


def _note(folder: Path, keeping: Keeping) -> None:
    write_private(folder / KEEPER, json.dumps(asdict(keeping)).encode())


def main() -> None:
    """Keep the cluster of the file that the command line names."""
    ending = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        ending.set()

    signal.signal(signal.SIGTERM, end)
    try:
        keep(load_launcher(sys.argv[1]), ending)
    except PotluckError as error:
        print(error, flush=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
