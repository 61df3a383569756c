"""What of a cluster runs: written by `potluck up` and its keeper, read by every command on the head's box.

Public keys stand in it and no secret. It is written whole or not at all, so a reader sees one state.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from dataclasses import fields as fields_of
from math import isfinite
from pathlib import Path
from typing import Any, TypeVar

from zmq.utils import z85

from orchestrator.cluster.private_files import write_private
from placement.errors import PotluckError
from placement.files.json_file import expect_object, read_json

RUN, PLAN = "run.json", "plan.json"
_MOST_BYTES = 10_000_000
_ENDPOINT = re.compile(r"tcp://[0-9.]+:[0-9]{1,5}")


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
        workers = tuple(_checked(RunningWorker(**worker)) for worker in fields.pop("workers"))
        state = _checked(RunState(**fields, workers=workers))
        if not all(isinstance(text, str) for text in (*state.missing, *state.missing.values())):
            raise TypeError("missing")
        for worker in workers:
            z85.decode(worker.public_key)
            if not all(_ENDPOINT.fullmatch(each) for each in (worker.endpoint, worker.pulse_endpoint)):
                raise ValueError(worker.name)
        return state
    except (TypeError, KeyError, AttributeError, ValueError, OverflowError):
        raise RunStateError(
            f"{path}: damaged, or written by another release: run `potluck down` and `potluck up`"
        ) from None


Record = TypeVar("Record", RunningWorker, RunState)


def _checked(record: Record) -> Record:
    """Raise TypeError or ValueError where a text or number is something else."""
    for field in fields_of(record):
        value = getattr(record, field.name)
        if field.type == "str":
            _check_text(value)
        elif field.type in ("int", "float") and (
            isinstance(value, bool) or not isinstance(value, (int, float)) or not isfinite(value)
        ):
            raise TypeError(field.name)
    return record


def _check_text(value: object) -> None:
    if not isinstance(value, str):
        raise TypeError(value)
    if not value.isprintable():
        raise ValueError(value)
