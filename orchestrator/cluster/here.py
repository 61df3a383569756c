"""What runs of a cluster on this box, and its end: `python -m orchestrator.cluster.here`, run over ssh.

Only processes of this cluster count: those that Ray or Potluck started, and whose command line, settings or
open files lie in the cluster's folder. Another cluster on the same box goes on.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from orchestrator.cluster.keys_folder import remove_keys
from orchestrator.cluster.launcher_file import remote_folder
from orchestrator.launch.kept_worker import LOG, ORDER, running_process
from orchestrator.launch.left_runs import RUNS, remove_left_runs
from orchestrator.launch.node_actor import WORKER
from orchestrator.launch.processes import end_process

RAY = "ray"
"""Ray's folder below the cluster's on a box."""
END_TIMEOUT_S = 5.0
_STARTED_BY_US = ("workers.serve", "orchestrator.launch.", "orchestrator.cluster.keeper")
_STARTED_BY_RAY = ("gcs_server", "raylet")


@dataclass(frozen=True, slots=True)
class Ended:
    """What was ended on a box: processes of Ray's and of ours, by name; and what would not end."""

    processes: tuple[str, ...]
    left: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Traces:
    """What tells whose process one is: its command line, and the paths in its settings and open files."""

    command: tuple[str, ...]
    paths: tuple[str, ...]

    def is_of_ray_or_ours(self) -> bool:
        """Not somebody's editor or pager that has a file of the cluster open."""
        first = self.command[0] if self.command else ""
        return first.startswith("ray::") or any(
            Path(word).name in _STARTED_BY_RAY or "/ray/" in word or word.startswith(_STARTED_BY_US)
            for word in self.command
        )

    def mentions(self, folders: Iterable[str]) -> bool:
        """Whether a word of the command line or a path lies in one of the folders."""
        marks = tuple(f"{folder}/" for folder in folders)
        return any(mark in f"{text}/" for text in (*self.command, *self.paths) for mark in marks)


def folders_of(folder: Path, ray_address: str, traces: Iterable[Traces]) -> set[str]:
    """The cluster's folder on this box, and where a Ray that was started by hand keeps its session."""
    found = {str(folder)}
    for each in traces:
        if not any(Path(word).name in _STARTED_BY_RAY for word in each.command[:1]):
            continue
        words = dict(word.lstrip("-").split("=", 1) for word in each.command if "=" in word)
        if words.get("gcs-address", words.get("gcs_address")) == ray_address:
            found |= {words[name] for name in ("session-dir", "session_dir") if words.get(name)}
    return found


def end_ray(folder: Path, ray_address: str = "") -> Ended:
    """End this cluster's Ray on this box and remove its files. Worker processes go on."""
    ended = _end(folder, ray_address, lambda traces: "workers.serve" not in traces.command)
    shutil.rmtree(folder / RAY, ignore_errors=True)
    return ended


def end_processes(folder: Path, ray_address: str = "") -> Ended:
    """End all of this cluster on this box; keys stay, and what its worker is to be, and at which ports."""
    # First what would start the worker again.
    ended = end_ray(folder, ray_address)
    process = running_process(folder / WORKER)
    if process is None:
        return ended
    end_process(process)
    return Ended((*ended.processes, f"worker {process.pid}"), ended.left)


def end_cluster(folder: Path, ray_address: str = "") -> Ended:
    """End all of this cluster on this box; remove its keys, sockets and files."""
    # First what would be started again.
    (folder / WORKER / ORDER).unlink(missing_ok=True)
    names = []
    process = running_process(folder / WORKER)
    if process is not None:
        end_process(process)
        names.append(f"worker {process.pid}")
    ended = _end(folder, ray_address, lambda traces: True)
    for name in (RAY, WORKER):
        shutil.rmtree(folder / name, ignore_errors=True)
    remove_keys(folder)
    remove_left_runs(Path(RUNS).expanduser())
    for empty in (folder, folder.parent):
        with suppress(OSError):
            empty.rmdir()
    return Ended((*names, *ended.processes), ended.left)


def _end(folder: Path, ray_address: str, wanted: Callable[[Traces], bool]) -> Ended:
    """Until none is left: those that end may have started others meanwhile."""
    ended: list[str] = []
    for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGKILL):
        found = [each for each in _processes(folder, ray_address) if wanted(each[1])]
        if not found:
            return Ended(tuple(ended), ())
        for process, traces in found:
            name = f"{_short_name(traces.command)} {process.pid}"
            if name not in ended:
                ended.append(name)
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)
        psutil.wait_procs([process for process, _ in found], timeout=END_TIMEOUT_S)
    left = [each for each in _processes(folder, ray_address) if wanted(each[1])]
    return Ended(tuple(ended), tuple(f"{_short_name(t.command)} {p.pid}" for p, t in left))


def _processes(folder: Path, ray_address: str) -> list[tuple[psutil.Process, Traces]]:
    own = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    seen = []
    for process in psutil.process_iter():
        if process.pid in own:
            continue
        with suppress(psutil.Error, OSError):
            if process.uids().real == os.getuid() and process.status() != psutil.STATUS_ZOMBIE:
                command = tuple(process.cmdline())
                if Traces(command, ()).is_of_ray_or_ours():
                    seen.append((process, Traces(command, _paths(process))))
    folders = folders_of(folder, ray_address, [traces for _, traces in seen])
    return [(process, traces) for process, traces in seen if traces.mentions(folders)]


def _paths(process: psutil.Process) -> tuple[str, ...]:
    """Ray's agents overwrite their command lines, and then their open logs tell whose they are."""
    found = []
    with suppress(psutil.Error, OSError):
        found += [file.path for file in process.open_files()]
    with suppress(psutil.Error, OSError):
        found += [value for name, value in process.environ().items() if name.startswith("RAY_")]
    return tuple(found)


def _short_name(command: Sequence[str]) -> str:
    for word in command:
        if word.startswith(_STARTED_BY_US):
            return word
    return Path(command[0]).name if command else "?"


def main(arguments: Sequence[str]) -> int:
    """`end NAME [RAY_ADDRESS]`, `end-ray …`, `end-processes …`: JSON of what was ended; `log NAME`."""
    what, cluster, *address = arguments
    folder = Path(remote_folder(cluster)).expanduser()
    if what == "log":
        path = folder / WORKER / LOG
        if path.exists():
            sys.stdout.write(path.read_text(encoding="utf-8", errors="replace"))
        return 0
    ends = {"end": end_cluster, "end-ray": end_ray, "end-processes": end_processes}
    ended = ends[what](folder, *address)
    print(json.dumps(asdict(ended)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
