"""What of a cluster runs: written by `potluck up` and its keeper, read by every command on the head's box.

Public keys stand in it and no secret. It is written whole or not at all, so a reader sees one state.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from orchestrator.cluster.private_files import write_private
from placement.errors import PotluckError
from placement.files.json_file import expect_object, read_json

RUN, PLAN = "run.json", "plan.json"
_MOST_BYTES = 10_000_000


class RunStateError(PotluckError):
    """No cluster runs here, or what is noted of it cannot be read."""


@dataclass(frozen=True, slots=True)
class RunningWorker:
    """A worker that served.

    Attributes:
        name, node: as the plan calls them.
        address: of its box.
        endpoint, pulse_endpoint: for requests, and for signs of life and orders.
        public_key: that it proves itself with, 40 characters of Z85.
        instance: a random number of its process.
        num_experts, held_bytes: what it held when it began to serve.
        since: seconds since 1970.
    """

    name: str
    node: str
    address: str
    endpoint: str
    pulse_endpoint: str
    public_key: str
    pid: int
    instance: int
    num_experts: int
    held_bytes: int
    since: float


@dataclass(frozen=True, slots=True)
class RunState:
    """A cluster that runs.

    Attributes:
        model_path: on the head's box.
        identity: of the model's files, "" where nobody noted it.
        plan: path of the plan in use.
        head: the node it was started on, which all commands run on.
        ray_address: of Ray's GCS.
        started: seconds since 1970.
        workers: where each served last, in the plan's order.
        missing: node -> why its worker does not serve now, in one line.
    """

    cluster: str
    model_path: str
    identity: str
    plan: str
    head: str
    ray_address: str
    started: float
    workers: tuple[RunningWorker, ...]
    missing: Mapping[str, str]

    def worker(self, name: str) -> RunningWorker | None:
        """None for one that does not serve."""
        return next((worker for worker in self.workers if worker.name == name), None)


def write_run_state(folder: Path, state: RunState) -> None:
    """Put it into a cluster's state folder.

    Raises:
        KeyFilesError: it cannot be written.
    """
    write_private(folder / RUN, (json.dumps(asdict(state), indent=1) + "\n").encode())


def read_run_state(folder: Path) -> RunState:
    """
    Raises:
        RunStateError: no cluster runs, or the file is damaged.
    """
    path = folder / RUN
    if not path.exists():
        raise RunStateError(f"{path}: expected a running cluster, found none: run `potluck up` first")
    what = "what `potluck up` writes: run it again"
    fields = expect_object(
        read_json(path, RunStateError, what, most_bytes=_MOST_BYTES), RunStateError, str(path)
    )
    return _from_fields(fields, path)


def _from_fields(fields: dict[str, Any], path: Path) -> RunState:
    try:
        workers = tuple(RunningWorker(**worker) for worker in fields.pop("workers"))
        return RunState(**fields, workers=workers)
    except (TypeError, KeyError, AttributeError):
        raise RunStateError(
            f"{path}: written by another release of Potluck: run `potluck down` and `potluck up`"
        ) from None
