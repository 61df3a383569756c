"""How long a worker that owes an answer is waited for: the runtime and the simulator alike."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Patience:
    """How long the dispatcher waits for a silent worker.

    A worker that computes still answers probes. So `silent_s` bounds the time without *any* message, and
    not the time that a large prefill may take.

    Attributes:
        probe_after_s: of silence, then the worker is asked for a sign of life.
        silent_s: of silence, then it is lost.
        busy_retry_s: after which a worker that had no room is asked again.
    """

    probe_after_s: float = 0.5
    silent_s: float = 3.0
    busy_retry_s: float = 0.01

    def gives_up_at_s(self, asked_s: float, dead_s: float, round_trip_s: float) -> float:
        """When a worker that owes an answer since `asked_s` and died at `dead_s` is taken for lost.

        It is probed after `probe_after_s` of silence; a probe that reaches it alive is answered one round
        trip later and starts the silence anew.
        """
        heard_s = asked_s
        while heard_s + self.probe_after_s + round_trip_s / 2 < dead_s:
            heard_s += self.probe_after_s + round_trip_s
        return heard_s + self.silent_s
