"""The workers of a cluster that runs already, as a session takes them: none is started, none is ended."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from orchestrator.cluster.heads import Heads
from orchestrator.cluster.keys_folder import read_pair
from orchestrator.cluster.run_state import RUN, RunState, RunStateError, read_run_state
from orchestrator.dispatch.view import WorkerAddress
from placement.errors import PotluckError
from placement.files.quote import quote
from placement.plan import Plan
from transport.keys import KeyPair


@dataclass(frozen=True, slots=True)
class RunningCluster:
    """Addresses of its workers, the pair of keys that they let in, and this run's share of it."""

    folder: Path
    keys: KeyPair
    state: RunState
    heads: Heads

    def alone(self) -> bool:
        """See `Workers.alone`."""
        return self.heads.alone()

    def wait_ready(self) -> Mapping[str, WorkerAddress]:
        """Where each worker served last, by name; one that is away now may come back there."""
        return _addresses(self.state)

    def now_at(self) -> Mapping[str, WorkerAddress]:
        """Where the cluster's keeper has noted each since; nowhere else while nothing can be read."""
        try:
            return _addresses(read_run_state(self.folder))
        except (PotluckError, OSError):
            return {}


@contextmanager
def running_cluster(folder: Path, heads: Heads, plan: Plan) -> Iterator[RunningCluster]:
    """The cluster of a state folder.

    Args:
        plan: in use, as the run has read it.

    Raises:
        RunStateError: none runs, or other workers than the plan's.
        KeyFilesError: this user may not read its keys.
    """
    state = read_run_state(folder)
    planned = {worker.name for worker in plan.workers}
    unknown = next((worker.name for worker in state.workers if worker.name not in planned), None)
    if unknown is not None:
        # The plan is written first, and what runs by it once it runs.
        raise RunStateError(
            f"{folder / RUN}: of another plan than {state.plan}, which has no worker {quote(unknown)}; "
            "if `potluck up` is at work, try again when it is done, else run `potluck up`"
        )
    yield RunningCluster(folder, read_pair(folder, state.head), state, heads)


def _addresses(state: RunState) -> dict[str, WorkerAddress]:
    return {
        worker.name: WorkerAddress(
            worker.endpoint, worker.pulse_endpoint, worker.public_key.encode(), worker.instance
        )
        for worker in state.workers
    }
