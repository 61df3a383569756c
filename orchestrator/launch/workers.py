"""What a session needs of workers, whoever started them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from orchestrator.dispatch.view import WorkerAddress
from placement.plan import Plan
from transport.keys import KeyPair
from workers.spec import WorkerInfo

# A worker must be ready within this time, plus the time to read its experts from a slow disk.
START_TIMEOUT_S = 120.0
SLOW_DISK_BYTES_PER_S = 20e6


class Workers(Protocol):
    """Workers that run or are being started."""

    @property
    def keys(self) -> KeyPair | None:
        """The head's own pair, which they let in; None where nothing is encrypted."""
        ...

    def alone(self) -> bool:
        """Whether no other head asks them now."""
        ...

    def wait_ready(self) -> Mapping[str, WorkerAddress]:
        """Until every worker holds its experts and serves them.

        Returns:
            By the plan's worker names.

        Raises:
            WorkerStartError: which worker failed first, and why; or which took too long.
        """
        ...

    def now_at(self) -> Mapping[str, WorkerAddress]:
        """Where workers serve that came, or moved, after `wait_ready`; asked again and again, so cheap."""
        ...


def address_of(info: WorkerInfo) -> WorkerAddress:
    """Where a worker says that it is."""
    return WorkerAddress(info.endpoint, info.pulse_endpoint, info.public_key, info.instance)


def start_timeout_s(plan: Plan, workers: Iterable[str]) -> float:
    """Within which all of these workers of a plan are to be ready, each reading from its own disk."""
    held = plan.bytes_per_tier()
    most_bytes = max((int(held[list(plan.worker(name).tiers)].sum()) for name in workers), default=0)
    return START_TIMEOUT_S + most_bytes / SLOW_DISK_BYTES_PER_S
