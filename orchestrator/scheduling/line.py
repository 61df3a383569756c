"""Who waits, in the order in which they are let in."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.scheduling.client_shares import ClientShares
from orchestrator.scheduling.job import Job


class Line:
    """Jobs that hold no keys and values.

    First comes the client that was served least. Of its jobs those that were let in before come first, in the
    order of that, and then the others as they arrived.
    """

    def __init__(self, shares: ClientShares) -> None:
        self._shares = shares
        self._jobs: dict[int, Job] = {}

    def __len__(self) -> int:
        return len(self._jobs)

    def __iter__(self) -> Iterator[Job]:
        return iter(self._jobs.values())

    def add(self, job: Job) -> None:
        """It waits from now on."""
        self._jobs[job.sequence] = job

    def remove(self, job: Job) -> None:
        """It waits no more."""
        del self._jobs[job.sequence]

    def first(self) -> Job | None:
        """Who is next."""
        return min(self._jobs.values(), key=self._order, default=None)

    def _order(self, job: Job) -> tuple[int, bool, int, int]:
        is_new = job.place == "waiting"
        since = job.arrived if is_new else job.admitted
        return self._shares.served(job.client), is_new, since, job.arrived
