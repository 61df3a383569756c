"""How often drafts hold: counted for each sequence, with what all showed until it has shown its own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

_KEPT = 0.997
"""What a count is multiplied with: at every step, and when its draft is tried again."""
_FADE_STEPS = 8
"""Counts fade once in so many steps, since it takes time."""
_HARDLY_LUCK = 0.001
"""So small a chance of as many equal outcomes on end says that things have changed."""
_KEPT_BY_CHANGE = 0.1
"""What counts are multiplied with then: the estimate stays, and what comes next moves it more."""
_PRIOR_TRIALS = 12.0
"""The shared acceptance counts like so many trials of a sequence of its own."""
_GUESS, _GUESS_TRIALS = 0.65, 5.0
"""Acceptance before anything was tried, and its weight in trials."""
_FEW_TRIALS = 3.0


class Verified(NamedTuple):
    """What became of a sequence's drafts."""

    sequence: int
    drafted: int
    accepted: int


class Acceptance:
    """Expected chance of each draft to hold if those before it do."""

    def __init__(self, most: int) -> None:
        """`most`: drafts of a sequence in a step."""
        self._most = most
        self._step = 0
        self._shared = _Counts()
        self._own: dict[int, _Counts] = {}

    def shared(self) -> list[float]:
        """Of a sequence that has shown nothing.

        A draft of which nothing is known is taken for the one before it, and for hopeless before that one was
        tried a few times: at first nobody knows what several drafts cost.
        """
        self._shared.fade(self._step)
        found, prior = [0.0] * self._most, _GUESS
        for place in range(self._most):
            found[place] = prior = self._shared.estimate(place, prior, _GUESS_TRIALS)
            if self._shared.times(place) < _FEW_TRIALS:
                break
        return found

    def of(self, sequence: int, shared: list[float]) -> list[float]:
        """Of a sequence, given what all showed."""
        own = self._own.get(sequence)
        if own is None:
            return shared
        own.fade(self._step)
        return [own.estimate(place, chance, _PRIOR_TRIALS) for place, chance in enumerate(shared)]

    def learn(self, verified: Iterable[Verified]) -> None:
        """A step is done, with drafts of these sequences."""
        self._step += 1
        for sequence, drafted, accepted in verified:
            own = self._own.get(sequence)
            if own is None:
                own = self._own[sequence] = _Counts(step=self._step)
            for counts in (self._shared, own):
                counts.fade(self._step)
                for place in range(min(drafted, accepted + 1)):
                    counts.learn(place, holds=place < accepted)

    def forget(self, sequence: int) -> None:
        """It has ended."""
        self._own.pop(sequence, None)


@dataclass(slots=True)
class _Counts:
    """Drafts tried and accepted by position, given that those before held; old ones fade."""

    tried: list[float] = field(default_factory=list)
    held: list[float] = field(default_factory=list)
    runs: list[int] = field(default_factory=list)
    """Equal outcomes on end by position: so many held, or, below 0, so many did not."""
    step: int = 0

    def fade(self, step: int) -> None:
        """It is that step now."""
        if step >= self.step + _FADE_STEPS:
            kept = _KEPT ** (step - self.step)
            self.tried = [count * kept for count in self.tried]
            self.held = [count * kept for count in self.held]
            self.step = step

    def learn(self, place: int, *, holds: bool) -> None:
        while len(self.tried) <= place:
            self.tried.append(0.0)
            self.held.append(0.0)
            self.runs.append(0)
        tried, held = self.tried[place], self.held[place]
        run = self.runs[place]
        run = max(run, 0) + 1 if holds else min(run, 0) - 1
        # A few trials say little. A run as long as all that is counted is no change.
        chance = self.estimate(place, 0.5, 2.0)
        if abs(run) < tried and (chance if holds else 1 - chance) ** abs(run) < _HARDLY_LUCK:
            tried, held, run = tried * _KEPT_BY_CHANGE, held * _KEPT_BY_CHANGE, 0
        self.tried[place] = tried * _KEPT + 1
        self.held[place] = held * _KEPT + holds
        self.runs[place] = run

    def times(self, place: int) -> float:
        return self.tried[place] if place < len(self.tried) else 0.0

    def estimate(self, place: int, prior: float, weight: float) -> float:
        tried, held = (self.tried[place], self.held[place]) if place < len(self.tried) else (0.0, 0.0)
        return (held + weight * prior) / (tried + weight)
