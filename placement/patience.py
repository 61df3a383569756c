"""How long the head waits for whom: the runtime and the simulator alike."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Patience:
    """How long the head waits before it asks others, asks again, or gives up.

    Whether a worker lives is told by its pulse, which it gives while it computes too. So these bound silence
    and lost messages, and not the time that a large prefill may take.

    Attributes:
        suspect_after_s: of silence on the pulse, then others are asked too.
        rescue_after_s: of silence on the pulse, then what the worker alone holds is read by others.
        dead_after_s: of silence on the pulse, then the worker is lost.
        busy_retry_s: after which a worker that had no room, or no other holder, is asked again.
        lost_after_s: how long what a pulse shows to be lost may still be on its way, transfer not counted.
        least_bytes_per_s: the slowest that a link is taken to be, where nobody sees whether bytes still move.
        hedge_floor_s: an answer that takes no longer is never asked of others; infinity: no answer is.
        slow_factor: of the time that it should take, then a worker's replicas are preferred.
        stuck_after_s: how long a worker may compute one request, for each of its pairs `stuck_pair_s` longer.
        stuck_known_s: how long at least, where it is known how long such requests take; then it may take
            `stuck_factor` times as long as an answer that is late, and no longer than one of unknown size.
        refusals: of one request by a worker that nobody can stand in for, before that worker is given up.
        losses: of it likewise, of messages. Each is waited for twice as long as the one before.
        view_wait_s: how long a pass waits for a view in which every expert has a holder.
    """

    suspect_after_s: float = 0.25
    rescue_after_s: float = 1.0
    dead_after_s: float = 3.0
    busy_retry_s: float = 0.01
    lost_after_s: float = 0.15
    least_bytes_per_s: float = 5e6
    hedge_floor_s: float = 0.03
    slow_factor: float = 3.0
    stuck_after_s: float = 10.0
    stuck_pair_s: float = 0.05
    stuck_known_s: float = 2.0
    stuck_factor: float = 20.0
    refusals: int = 3
    losses: int = 4
    view_wait_s: float = 30.0

    def gives_up_at_s(self, reached_s: float, dead_s: float) -> float:
        """When a request that would have reached a worker at `reached_s` is asked of others.

        The worker fell silent at `dead_s`.
        """
        return max(reached_s, dead_s + self.suspect_after_s)

    def stuck_s(self, pairs: int, late_s: float | None = None) -> float:
        """How long a worker may compute a request of so many (row, expert) pairs.

        `late_s`: after which its answer to one of that size is late; None where such are not known.
        """
        longest_s = self.stuck_after_s + pairs * self.stuck_pair_s
        if late_s is None:
            return longest_s
        return min(longest_s, max(self.stuck_known_s, self.stuck_factor * late_s))

    def transfer_s(self, num_bytes: int) -> float:
        """How long so many bytes may be on their way, once they should have come."""
        return self.lost_after_s + num_bytes / self.least_bytes_per_s
