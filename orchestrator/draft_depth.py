"""How many drafts to make for each sequence of a step: as many as make the batch fastest, or none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, islice
from operator import mul

from orchestrator.scheduling.measured_costs import MeasuredCosts

_KEPT_BY_STEP, _KEPT_BY_TRIAL = 0.996, 0.97
"""What a count is multiplied with: at every step, and when its draft is tried again."""
_PRIOR_TRIALS = 4.0
"""The shared acceptance counts like so many trials of a sequence of its own."""
_GUESS, _GUESS_TRIALS = 0.6, 2.0
"""Acceptance before anything was tried, and its weight in trials."""

_ALLOWANCE = 0.008
"""Share of the time that drafts may lose against none."""
_STAKE_STEPS = 4.0
"""In steps without drafts: what they may lose at first, and what they may lose again after they gained."""
_PROBE_SHARE = 0.008
"""Share of the time that trying other depths may cost beside the best one."""
_PROBE_GAP_STEPS = 12
_SAME_STEPS = 4
"""So long a choice holds for the same sequences: what is learned in a step changes little."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A sequence that is decoded. `most`: drafts that could still become its output."""

    sequence: int
    most: int


@dataclass(frozen=True, slots=True)
class Verified:
    """What became of a sequence's drafts."""

    sequence: int
    drafted: int
    accepted: int


@dataclass(slots=True)
class _Counts:
    """Drafts tried and accepted by position, given that those before held; old ones fade."""

    tried: list[float] = field(default_factory=list)
    held: list[float] = field(default_factory=list)
    step: int = 0

    def fade(self, step: int) -> None:
        """It is that step now."""
        if step > self.step:
            kept = _KEPT_BY_STEP ** (step - self.step)
            self.tried = [count * kept for count in self.tried]
            self.held = [count * kept for count in self.held]
            self.step = step

    def learn(self, place: int, *, holds: bool) -> None:
        while len(self.tried) <= place:
            self.tried.append(0.0)
            self.held.append(0.0)
        self.tried[place] = self.tried[place] * _KEPT_BY_TRIAL + 1
        self.held[place] = self.held[place] * _KEPT_BY_TRIAL + holds

    def estimate(self, place: int, prior: float, weight: float) -> float:
        tried, held = (self.tried[place], self.held[place]) if place < len(self.tried) else (0.0, 0.0)
        return (held + weight * prior) / (tried + weight)


class DraftDepth:
    """Chooses depths from measured acceptance and costs; the same messages give the same choices.

    Drafts are made where they are expected to pay. What they lose against none is kept on an account: every
    step pays `_ALLOWANCE` of its time in, drafts that do not hold take out, drafts that hold pay in. Nothing
    is drafted that could overdraw it. Now and then another depth is tried, so that what changed is noticed;
    a second account, `_PROBE_SHARE`, pays for that.
    """

    def __init__(self, most: int, costs: MeasuredCosts) -> None:
        """`most`: drafts of a sequence in a step; `costs` may learn meanwhile."""
        self.most = min(most, costs.most_drafts)
        self._costs = costs
        self._step = 0
        self._shared = _Counts()
        self._own: dict[int, _Counts] = {}
        self._account_s: float | None = None
        self._purse_s = 0.0
        self._since_probe = 0
        self._next_probe = 0
        self._again: tuple[_Asked, dict[int, int]] | None = None
        self._plan: _Plan | None = None

    def acceptance(self, sequence: int) -> list[float]:
        """Expected chance of each draft to hold if those before it do."""
        own = self._own.get(sequence)
        for counts in (self._shared, own):
            if counts is not None:
                counts.fade(self._step)
        chances = []
        for place in range(self.most):
            shared = self._shared.estimate(place, _GUESS, _GUESS_TRIALS)
            chances.append(own.estimate(place, shared, _PRIOR_TRIALS) if own else shared)
        return chances

    def choose(
        self, candidates: Sequence[Candidate], other_rows: int = 0, most_rows: int = 1 << 30
    ) -> dict[int, int]:
        """Drafts of each sequence in the next step.

        Args:
            other_rows: of prompts in the same pass.
            most_rows: that drafts may add to it.
        """
        none = {candidate.sequence: 0 for candidate in candidates}
        if not candidates or not self.most:
            return none
        asked = _Asked(
            tuple((candidate.sequence, min(candidate.most, self.most)) for candidate in candidates),
            other_rows,
            most_rows,
        )
        plan = self._plan
        if plan is None or plan.asked != asked or self._step >= plan.until:
            plan = self._plan = self._planned(asked)
        if self._account_s is None:
            self._account_s, self._purse_s = _STAKE_STEPS * plan.off_s, plan.off_s
        chosen = self._probe(plan, self._account_s)
        risk_s = (plan.best_s if chosen is plan.best else self._seconds(plan, chosen)) - plan.off_s
        return dict(chosen) if risk_s <= self._account_s else none

    def _planned(self, asked: _Asked) -> _Plan:
        num_sequences = len(asked.most)
        gains = _Gains.of(asked.most, [self.acceptance(sequence) for sequence, _ in asked.most])
        off_s = self._step_s(num_sequences, [0], asked.other_rows)
        best, best_rate = self._fastest(gains, num_sequences / off_s, asked.other_rows, asked.most_rows)
        best_s = self._step_s(num_sequences, best.values(), asked.other_rows)
        return _Plan(asked, self._step + _SAME_STEPS, gains, off_s, best, best_rate, best_s)

    def _seconds(self, plan: _Plan, depths: Mapping[int, int]) -> float:
        return self._step_s(len(depths), depths.values(), plan.asked.other_rows)

    def learn(self, verified: Iterable[Verified], other_rows: int = 0) -> None:
        """A step is done; tell `costs` of its time first."""
        done = list(verified)
        self._step += 1
        for one in done:
            if one.drafted:
                for counts in (self._shared, self._own.setdefault(one.sequence, _Counts())):
                    counts.fade(self._step)
                    for place in range(min(one.drafted, one.accepted + 1)):
                        counts.learn(place, holds=place < one.accepted)
        if not done or self._account_s is None:
            return
        off_s = self._step_s(len(done), [0], other_rows)
        saved_s = cost_s = 0.0
        drafted = [one.drafted for one in done]
        if any(drafted):
            # A token more saves its part of a later step, which has no prompt in it.
            saved_s = sum(one.accepted for one in done) / len(done) * self._step_s(len(done), [0], 0)
            cost_s = self._step_s(len(done), drafted, other_rows) - off_s
        account_s = self._account_s + saved_s - cost_s + _ALLOWANCE * off_s
        self._account_s = min(account_s, _STAKE_STEPS * off_s)

    def forget(self, sequence: int) -> None:
        """It has ended."""
        self._own.pop(sequence, None)

    def _fastest(
        self, gains: _Gains, off_rate: float, other_rows: int, most_rows: int
    ) -> tuple[dict[int, int], float]:
        """The depths with the most expected tokens a second, and how many; none where nothing beats that.

        For each depth and number of drafts the best drafts are those that gain most, so no choice is better.
        """
        num_sequences = len(gains.by_place)
        best_rate, best_depth, best_count = off_rate, 0, 0
        by_gain = gains.sorted()
        # How long a pass takes is asked for again and again.
        trunk_s: dict[int, float] = {}
        for depth in range(1, self.most + 1):
            tokens, count, drafting = float(num_sequences), 0, 0
            for gain, place, _ in by_gain:
                if place >= depth:
                    continue
                if count == most_rows:
                    break
                tokens, count, drafting = tokens + gain, count + 1, drafting + (place == 0)
                rows = num_sequences + count + other_rows
                if rows not in trunk_s:
                    trunk_s[rows] = self._costs.trunk_s(rows)
                rate = tokens / (trunk_s[rows] + self._drafting_s(depth, drafting))
                if rate > best_rate:
                    best_rate, best_depth, best_count = rate, depth, count
        return gains.best(best_depth, best_count), best_rate

    def _drafting_s(self, depth: int, drafting: int) -> float:
        """Each sequence brings its newest row, and about one that was accepted or hung on a draft."""
        return self._costs.drafting_s(depth, 2 * drafting)

    def _step_s(self, sequences: int, depths: Iterable[int], other_rows: int) -> float:
        drafts = list(depths)
        drafting = sum(depth > 0 for depth in drafts)
        trunk_s = self._costs.trunk_s(sequences + sum(drafts) + other_rows)
        return trunk_s + self._drafting_s(max(drafts), drafting)

    def _probe(self, plan: _Plan, account_s: float) -> dict[int, int]:
        """The best depths, or others where it is time to try them and there is time to spare.

        Drafts are tried in two steps. In the first one MTP layers take in what waits for them since the last
        time, so that only the second one shows what they cost.
        """
        best_s = plan.best_s
        self._purse_s = min(self._purse_s + _PROBE_SHARE * best_s, 8 * best_s)
        self._since_probe += 1
        if self._again is not None:
            (asked, again), self._again = self._again, None
            if asked == plan.asked:
                return again
        if self._since_probe < _PROBE_GAP_STEPS:
            return plan.best
        order = _probe_order(self.most)
        for turn in range(len(order)):
            place = (self._next_probe + turn) % len(order)
            tried = {sequence: max(0, min(order[place], most)) for sequence, most in plan.asked.most}
            if tried == plan.best or sum(tried.values()) > plan.asked.most_rows:
                continue
            step_s = self._seconds(plan, tried)
            # As a prediction may be far too dear, one step is better than none.
            steps = 2 if any(tried.values()) and 2 * (step_s - plan.off_s) <= account_s else 1
            loss_s = max(0.0, steps * (step_s - plan.gains.tokens(tried) / plan.best_rate))
            if loss_s > self._purse_s:
                return plan.best
            self._purse_s -= loss_s
            self._since_probe = 0
            self._next_probe = place + 1
            self._again = (plan.asked, tried) if steps == 2 else None
            return tried
        return plan.best


def _probe_order(most: int) -> list[int]:
    """One draft every other time: it costs least, and without it no other one holds."""
    return [depth for other in (*range(2, most + 1), 0) for depth in (1, other)]


@dataclass(frozen=True, slots=True)
class _Gains:
    """Expected tokens of drafts. `by_place`: sequence -> of its first draft, of its second, ..."""

    by_place: Mapping[int, Sequence[float]]

    @classmethod
    def of(cls, most: Iterable[tuple[int, int]], chances: Sequence[Sequence[float]]) -> _Gains:
        by_place = {}
        for (sequence, wanted), own in zip(most, chances, strict=True):
            by_place[sequence] = list(accumulate(own[: max(0, wanted)], mul))
        return cls(by_place)

    def tokens(self, depths: Mapping[int, int]) -> float:
        """Expected of a step."""
        return sum(1 + sum(self.by_place[sequence][:depth]) for sequence, depth in depths.items())

    def sorted(self) -> list[tuple[float, int, int]]:
        """(gain, place, sequence), best first: a draft gains no more than the one before it."""
        drafts = [(gain, place, n) for n, gains in self.by_place.items() for place, gain in enumerate(gains)]
        return sorted(drafts, key=lambda draft: (-draft[0], draft[1], draft[2]))

    def best(self, depth: int, count: int) -> dict[int, int]:
        """So many drafts that gain most, none deeper than `depth`."""
        depths = dict.fromkeys(self.by_place, 0)
        shallow = (draft for draft in self.sorted() if draft[1] < depth)
        for _, _, sequence in islice(shallow, count):
            depths[sequence] += 1
        return depths


@dataclass(frozen=True, slots=True)
class _Asked:
    """What depths are wanted for. `most`: of each sequence in turn, its number and its most drafts."""

    most: tuple[tuple[int, int], ...]
    other_rows: int
    most_rows: int


@dataclass(frozen=True, slots=True)
class _Plan:
    """What was found: the best depths, the tokens a second and the seconds of a step that they give.

    Attributes:
        until: the step at which it is looked for again.
        off_s: of a step without drafts.
    """

    asked: _Asked
    until: int
    gains: _Gains
    off_s: float
    best: dict[int, int]
    best_rate: float
    best_s: float
