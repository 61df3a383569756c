"""When there will be room: what a client that is refused is told."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.scheduling.job import Job
from orchestrator.scheduling.native import MeasuredCosts

_USUAL_ANSWER = 256.0
"""Tokens of an answer, before one has ended."""
_WEIGHT = 0.1
"""Of the newest answer in their mean, once ten have ended."""
_SHORTEST_S, _LONGEST_S = 1.0, 600.0
_STILL = 16
"""Tokens that an answer gets at least which is about as long as usual."""


class WaitingTime:
    """Expects answers to be as long as those before them, and passes to take what they took."""

    def __init__(self, costs: MeasuredCosts, pass_rows: int) -> None:
        self._costs = costs
        self._pass_rows = pass_rows
        self._usual = _USUAL_ANSWER
        self._num_ended = 0

    def ended(self, tokens: int) -> None:
        """An answer of so many tokens is complete."""
        self._num_ended += 1
        # The first ones count as much as the guess before them.
        self._usual += max(_WEIGHT, 1 / (1 + self._num_ended)) * (tokens - self._usual)

    def until_one_ends(self, running: Sequence[Job]) -> float:
        """Seconds until the first of these sequences ends, from 1 to 600."""
        step_s = self._costs.trunk_s(max(1, len(running)))
        prompt_row_s = self._costs.trunk_s(self._pass_rows) / self._pass_rows
        usual = self._usual
        if not self._num_ended:
            # No answer has ended yet, so that the longest tells most: it gets about as many tokens again.
            usual = max(usual, 2.0 * max((job.generated for job in running), default=0))
        # One that is longer than usual is taken to get as many tokens more as it is longer.
        seconds = [
            job.to_prefill * prompt_row_s
            + min(job.remaining, max(abs(usual - job.generated), _STILL)) * step_s
            for job in running
        ]
        return min(max(min(seconds, default=_SHORTEST_S), _SHORTEST_S), _LONGEST_S)
