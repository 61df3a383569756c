"""What a queueing simulation is told besides plan and cluster: streams of tokens, and what goes wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from placement.errors import InputError
from placement.plan import Plan
from placement.replay.steps import Acceptance, Trace


@dataclass(frozen=True, slots=True, eq=False)
class Stream:
    """Passes that follow each other; several streams share the head, the devices and the links.

    `traces` as in `step_blocks`; the first pass is ready at `start_s`.
    """

    traces: Sequence[Trace]
    acceptance: Acceptance | None = None
    start_s: float = 0.0

    def __post_init__(self) -> None:
        _check_time(self.start_s, "stream")


@dataclass(frozen=True, slots=True)
class WorkerLoss:
    """The worker is gone from `at_s` on: it answers neither requests nor probes."""

    worker: str
    at_s: float

    def __post_init__(self) -> None:
        _check_time(self.at_s, f"loss of worker {self.worker!r}")


@dataclass(frozen=True, slots=True, eq=False)
class NewPlan:
    """From `at_s` on experts move to where `plan` wants them; passes that start after that run under it.

    Weights travel from workers that hold them, `chunk_bytes` at a time, so that a request waits for at
    most one chunk; a receiving worker takes one expert after another, at most `bytes_per_s`.
    """

    plan: Plan
    at_s: float
    bytes_per_s: float = float("inf")
    chunk_bytes: int = 256 * 1024

    def __post_init__(self) -> None:
        _check_time(self.at_s, "new plan")
        if not self.bytes_per_s > 0 or self.chunk_bytes < 1:
            raise InputError("new plan: expected a positive rate and chunk size")


Event = WorkerLoss | NewPlan


def _check_time(at_s: float, what: str) -> None:
    if not 0 <= at_s < float("inf"):
        raise InputError(f"{what}: expected a time of at least 0 seconds, found {at_s}")
