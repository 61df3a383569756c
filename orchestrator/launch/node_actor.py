"""The one small process that Ray keeps on a box for us: it starts and watches the box's worker process.

It loads no torch and holds no expert. When it dies, or Ray does, the worker goes on; Ray starts the actor
again, and it finds the worker by its folder.
"""

from __future__ import annotations

import os
import platform
import shutil
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from orchestrator.launch.kept_worker import KeptWorker
from orchestrator.launch.left_runs import RUNS, remove_left_runs
from placement.errors import PotluckError
from workers.spec import WorkerSpec

WORKER = "worker"
"""The worker's folder below the cluster's on a box."""


class NodeActor:
    """What Ray calls on a box. Answers are plain data: {"error": one line} where something failed."""

    def __init__(self, folder: str) -> None:
        """
        Args:
            folder: of the cluster on this box, "~" for the user's home.
        """
        remove_left_runs(Path(RUNS).expanduser())
        self._folder = Path(folder).expanduser() / WORKER
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._kept = KeptWorker(self._folder)

    def keep(self, order: str, node: str) -> dict[str, Any]:
        """Have a worker run here from now on.

        Args:
            order: a `WorkerSpec` as JSON, without secrets.
            node: whose keys it is to prove itself with, "" for keys made here.
        """
        try:
            spec = WorkerSpec.from_json(order)
            if node:
                spec = _with_keys(spec, self._folder.parent, node)
            self._kept.keep(spec)
        except (PotluckError, OSError) as error:
            return {"error": str(error)}
        return self.state()

    def state(self) -> dict[str, Any]:
        """How the worker is, and what runs here."""
        return self._kept.state().to_dict() | {
            "host": platform.node(),
            "actor_pid": os.getpid(),
            "version": version("potluck-moe"),
        }

    def stop(self) -> dict[str, Any]:
        """End the worker, and remove what is known of it."""
        try:
            self._kept.stop()
            shutil.rmtree(self._folder, ignore_errors=True)
            # What of the cluster lies there besides, stays.
            for folder in (self._folder.parent, self._folder.parent.parent):
                with suppress(OSError):
                    folder.rmdir()
        except OSError as error:
            return {"error": str(error)}
        return self.state()


def _with_keys(spec: WorkerSpec, folder: Path, node: str) -> WorkerSpec:
    # The libraries behind it are only needed where a cluster has keys.
    from orchestrator.cluster.keys_folder import read_box_keys

    keys = read_box_keys(folder, node)
    return replace(spec, keys=keys.own, allowed=tuple(sorted(keys.allowed)))
