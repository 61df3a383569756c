"""How long to wait before something that failed is tried again: longer each time, until it has lasted."""

from __future__ import annotations

FIRST_S = 0.1
LONGEST_S = 30.0
STEADY_S = 60.0


class RestartPause:
    """Of a process that is started again whenever it dies."""

    def __init__(self) -> None:
        self._next_s = FIRST_S

    def after_s(self, lived_s: float) -> float:
        """The pause after a process that lived so long; it doubles until one has lived for a minute."""
        pause_s = FIRST_S if lived_s >= STEADY_S else self._next_s
        self._next_s = min(2 * pause_s, LONGEST_S)
        return pause_s
