"""What a session needs of workers, whoever started them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from orchestrator.dispatch.view import WorkerAddress
from transport.keys import KeyPair
from workers.spec import WorkerInfo


class Workers(Protocol):
    """Workers that run or are being started."""

    @property
    def keys(self) -> KeyPair | None:
        """The head's own pair, which they let in; None where nothing is encrypted."""
        ...

    def wait_ready(self) -> Mapping[str, WorkerAddress]:
        """Until every worker holds its experts and serves them.

        Returns:
            By the plan's worker names.

        Raises:
            WorkerStartError: which worker failed first, and why; or which took too long.
        """
        ...


def address_of(info: WorkerInfo) -> WorkerAddress:
    """Where a worker says that it is."""
    return WorkerAddress(info.endpoint, info.pulse_endpoint, info.public_key, info.instance)
