"""What the watch over the workers knows now: one value, replaced as a whole and never changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from orchestrator.dispatch.view import NOBODY, ClusterView


@dataclass(frozen=True, slots=True)
class PongSeen:
    """A worker's newest sign of life.

    Attributes:
        sent_s: when its ping left, on the head's monotonic clock.
        received_id: the highest forward request of this head that had come.
        open_ids: how many requests of this head it had not answered.
        computing_id: this head's request that it was computing, 0 for none.
        computing_s: for how long it had been computing whatever it computed.
    """

    sent_s: float
    received_id: int
    open_ids: int
    computing_id: int
    computing_s: float


@dataclass(frozen=True, slots=True)
class Standing:
    """The newest view, and what has happened since it was made.

    Attributes:
        view: the next pass runs on it if it is complete.
        suspects: workers that have been silent for a moment: others are asked too where they can.
        pongs: by worker index.
        missing: why the view is not complete, for people; empty where it is.
    """

    view: ClusterView
    suspects: frozenset[int] = NOBODY
    pongs: Mapping[int, PongSeen] = field(default_factory=dict)
    missing: str = ""

    @property
    def dead(self) -> frozenset[int]:
        """Workers that do not take part: what they owe is asked of others at once."""
        return self.view.absent


Stand = Callable[[], Standing]
"""Gives the newest standing; called from any thread."""
