"""How many drafts to make for each sequence of a step: as many as make the batch fastest, or none."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, islice
from operator import mul

from orchestrator.scheduling.measured_costs import MeasuredCosts

_KEPT_BY_STEP, _KEPT_BY_TRIAL = 0.997, 0.98
"""What a count is multiplied with: at every step, and when its draft is tried again."""
_FADE_STEPS = 8
_PRIOR_TRIALS = 6.0
"""The shared acceptance counts like so many trials of a sequence of its own."""
_GUESS, _GUESS_TRIALS = 0.65, 10.0
"""Acceptance before anything was tried, and its weight in trials."""

_ALLOWANCE = 0.006
"""Share of the time that drafts may lose against none."""
_STAKE_STEPS, _MOST_STEPS = 6.0, 6.0
"""In steps without drafts: what they may lose at first, and what they may lose again after they gained."""
MARGIN = 0.01
"""By so much drafts have to be faster than none: estimates are no better."""
_PROBE_SHARE = 0.006
"""Share of the time that trying other depths may cost beside the best one."""
_PROBE_GAP_STEPS = 12
_MOST_TRY_STEPS = 8
"""As many steps on end another depth is tried where much had to be taken in for the first one."""
_SAME_STEPS = 16
"""So long a choice holds for the same sequences: what is learned in a step changes little."""
_USUAL_ROWS = 8
"""Rows that wait for an MTP layer where it drafts in every step, at most."""
_LONGEST_USE_STEPS = 256
"""What rows that had waited cost is held against what drafts are expected to gain in so many steps."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A sequence that is decoded.

    Attributes:
        most: drafts that could still become its output.
        behind: rows that each MTP layer would take in before it drafts; () for none.
    """

    sequence: int
    most: int
    behind: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Verified:
    """What became of a sequence's drafts."""

    sequence: int
    drafted: int
    accepted: int


def rows_to_take_in(behind: Sequence[int], depth: int) -> tuple[int, ...]:
    """Rows of each of the first `depth` MTP layers that it has not because nobody asked it for drafts."""
    if not behind or max(behind) <= _USUAL_ROWS:
        return ()
    return tuple(rows if rows > _USUAL_ROWS else 0 for rows in behind[:depth])


@dataclass(slots=True)
class _Counts:
    """Drafts tried and accepted by position, given that those before held; old ones fade."""

    tried: list[float] = field(default_factory=list)
    held: list[float] = field(default_factory=list)
    step: int = 0

    def fade(self, step: int) -> None:
        """It is that step now."""
        if step >= self.step + _FADE_STEPS:
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
        self._account = self._purse = _STAKE_STEPS
        """In steps without drafts, whatever these take: the box may get slower, and sequences come and go."""
        self._since_probe = _PROBE_GAP_STEPS // 2
        self._next_probe = 0
        self._again: tuple[tuple[int, ...], dict[int, int], int] | None = None
        """What is tried: by whom, how, and for how many steps more."""
        self._plan: _Plan | None = None
        self._risk_s = 0.0
        """What was chosen last is expected to cost against none, before anything is saved."""

    def acceptance(self, sequence: int) -> list[float]:
        """Expected chance of each draft to hold if those before it do."""
        return self._chances(sequence, self._shared_chances())

    def _shared_chances(self) -> list[float]:
        self._shared.fade(self._step)
        return [self._shared.estimate(place, _GUESS, _GUESS_TRIALS) for place in range(self.most)]

    def _chances(self, sequence: int, shared: list[float]) -> list[float]:
        own = self._own.get(sequence)
        if own is None:
            return shared
        own.fade(self._step)
        return [own.estimate(place, chance, _PRIOR_TRIALS) for place, chance in enumerate(shared)]

    def choose(
        self, candidates: Sequence[Candidate], other_rows: int = 0, most_rows: int = 1 << 30
    ) -> dict[int, int]:
        """Drafts of each sequence in the next step.

        Args:
            other_rows: of prompts in the same pass.
            most_rows: that drafts may add to it.
        """
        self._risk_s = 0.0
        if not candidates or not self.most:
            return {candidate.sequence: 0 for candidate in candidates}
        asked = (tuple([candidate.sequence for candidate in candidates]), other_rows, most_rows)
        plan = self._plan
        if plan is None or self._step >= plan.until or plan.asked != asked:
            plan = self._plan = self._planned(asked, candidates)
        account_s = self._account * plan.unit_s
        self._purse = min(self._purse + _PROBE_SHARE * plan.best_s / plan.unit_s, _MOST_STEPS)
        self._since_probe += 1
        chosen = plan.best
        if self._again is not None or self._since_probe >= _PROBE_GAP_STEPS:
            chosen = self._probe(plan, candidates, account_s)
        if chosen is plan.off:
            return chosen.copy()
        if chosen is plan.best:
            risk_s = plan.best_s - plan.off_s + plan.waiting_s
        else:
            risk_s = self._seconds(plan, chosen) + self._waiting_s(candidates, chosen) - plan.off_s
        if risk_s > account_s:
            return plan.off.copy()
        if plan.waiting_s:
            # Once they are taken in, nothing waits any more.
            plan.until = self._step
        self._risk_s = risk_s
        return {
            candidate.sequence: max(0, min(chosen[candidate.sequence], candidate.most))
            for candidate in candidates
        }

    def learn(self, verified: Iterable[Verified], other_rows: int = 0, took_s: float | None = None) -> None:
        """A step is done; tell `costs` of its time first.

        Args:
            other_rows: of prompts, that were in it.
            took_s: how long it took; None for as long as was expected.
        """
        self._step += 1
        step, plan = self._step, self._plan
        accepted = sequences = 0
        drafted: dict[int, int] = {}
        for one in verified:
            sequences += 1
            if one.drafted:
                drafted[one.sequence] = one.drafted
                accepted += one.accepted
                own = self._own.get(one.sequence)
                if own is None:
                    own = self._own[one.sequence] = _Counts(step=step)
                for counts in (self._shared, own):
                    counts.fade(step)
                    for place in range(min(one.drafted, one.accepted + 1)):
                        counts.learn(place, holds=place < one.accepted)
        if plan is None:
            return
        saved_s = _ALLOWANCE * (plan.off_s if sequences else self._costs.trunk_s(max(1, other_rows)))
        if drafted:
            cost_s = self._risk_s
            if took_s is not None:
                # A pass that was run again says nothing.
                off_s = self._costs.trunk_s(sequences + other_rows)
                cost_s = min(took_s - off_s, 3 * cost_s)
            # A token more saves its part of a later step, which has no prompt in it.
            saved_s += accepted / sequences * self._costs.trunk_s(sequences) - cost_s
        self._account = min(self._account + saved_s / plan.unit_s, _MOST_STEPS)

    def forget(self, sequence: int) -> None:
        """It has ended."""
        self._own.pop(sequence, None)

    def _planned(self, asked: _Asked, candidates: Sequence[Candidate]) -> _Plan:
        _, other_rows, most_rows = asked
        most = [(of.sequence, min(of.most, self.most)) for of in candidates]
        num_sequences = len(most)
        shared = self._shared_chances()
        gains = _Gains.of(most, [self._chances(sequence, shared) for sequence, _ in most])
        off = {sequence: 0 for sequence, _ in most}
        off_s, unit_s = self._costs.trunk_s(num_sequences + other_rows), self._costs.trunk_s(num_sequences)
        waiting = self._waiting(candidates)
        best, best_rate = self._fastest(
            gains.without(_too_dear(waiting, self._account * unit_s)),
            waiting,
            num_sequences / off_s,
            other_rows,
            most_rows,
        )
        if waiting:
            # Those alone that nothing waits for may be faster.
            found, rate = self._fastest(
                gains.without(waiting), {}, num_sequences / off_s, other_rows, most_rows
            )
            if rate > best_rate:
                best, best_rate = found, rate
        if best_rate < (1 + MARGIN) * num_sequences / off_s or not any(best.values()):
            best, best_rate = off, num_sequences / off_s
        best_s = self._step_s(num_sequences, best.values(), other_rows)
        waiting_s = sum(waiting[n][depth][0] for n, depth in best.items() if depth and n in waiting)
        return _Plan(
            asked, self._step + _SAME_STEPS, gains, off, off_s, best, best_rate, best_s, waiting_s, unit_s
        )

    def _fastest(
        self, gains: _Gains, waiting: _Waits, off_rate: float, other_rows: int, most_rows: int
    ) -> tuple[dict[int, int], float]:
        """The depths with the most expected tokens a second, and how many; none where nothing beats that.

        For each depth and number of drafts the best drafts are those that gain most, so no choice is better
        where nothing waits.
        """
        num_sequences = len(gains.by_place)
        best_rate, best_depth, best_count = off_rate, 0, 0
        by_gain = gains.sorted()
        # How long a pass takes is asked for again and again.
        trunk_s: dict[int, float] = {}
        drafting_s: dict[int, float] = {}
        for depth in range(1, self.most + 1):
            tokens, count, drafting, waiting_s = float(num_sequences), 0, 0, 0.0
            drafting_s.clear()
            for gain, place, sequence in by_gain:
                if place >= depth:
                    continue
                if count == most_rows:
                    break
                tokens, count = tokens + gain, count + 1
                if not place:
                    drafting += 1
                    if sequence in waiting:
                        waiting_s += waiting[sequence][depth][1]
                rows = num_sequences + count + other_rows
                if rows not in trunk_s:
                    trunk_s[rows] = self._costs.trunk_s(rows)
                if drafting not in drafting_s:
                    drafting_s[drafting] = self._costs.drafting_s(depth, drafting)
                rate = tokens / (trunk_s[rows] + drafting_s[drafting] + waiting_s)
                if rate > best_rate:
                    best_rate, best_depth, best_count = rate, depth, count
        return gains.best(best_depth, best_count), best_rate

    def _seconds(self, plan: _Plan, depths: Mapping[int, int]) -> float:
        return self._step_s(len(depths), depths.values(), plan.asked[1])

    def _step_s(self, sequences: int, depths: Iterable[int], other_rows: int) -> float:
        drafts = list(depths)
        drafting = sum(depth > 0 for depth in drafts)
        trunk_s = self._costs.trunk_s(sequences + sum(drafts) + other_rows)
        return trunk_s + self._costs.drafting_s(max(drafts), drafting)

    def _waiting_s(self, candidates: Sequence[Candidate], depths: Mapping[int, int]) -> float:
        return sum(
            self._costs.taking_in_s(rows_to_take_in(of.behind, depths[of.sequence])) for of in candidates
        )

    def _waiting(self, candidates: Sequence[Candidate]) -> _Waits:
        found = {}
        for candidate in candidates:
            if candidate.behind and max(candidate.behind) > _USUAL_ROWS:
                steps = max(1, min(_LONGEST_USE_STEPS, candidate.most))
                taken_in = [rows_to_take_in(candidate.behind, depth) for depth in range(self.most + 1)]
                seconds = map(self._costs.taking_in_s, taken_in)
                found[candidate.sequence] = [(one_s, one_s / steps) for one_s in seconds]
        return found

    def _probe(self, plan: _Plan, candidates: Sequence[Candidate], account_s: float) -> dict[int, int]:
        """The best depths, or others where it is time to try them and there is time to spare.

        All sequences try them, or the one for which least waits. Where much waits they are tried in several
        steps on end, since it is taken in once.
        """
        if self._again is not None:
            sequences, again, left = self._again
            self._again = (sequences, again, left - 1) if left > 1 else None
            if sequences == plan.asked[0]:
                return again
            self._again = None
        if self._since_probe < _PROBE_GAP_STEPS:
            return plan.best
        # Also where nothing can be paid for now: to look takes time too.
        self._since_probe = 0
        order = _probe_order(self.most)
        for turn in range(len(order)):
            place = (self._next_probe + turn) % len(order)
            others = [
                tried
                for tried in self._tries(plan, candidates, order[place])
                if tried != plan.best and sum(tried.values()) <= plan.asked[2]
            ]
            for tried in others:
                step_s, waiting_s = self._seconds(plan, tried), self._waiting_s(candidates, tried)
                step_loss_s = max(0.0, step_s - plan.gains.tokens(tried) / plan.best_rate)
                steps = 1
                if waiting_s:
                    most = min(_MOST_TRY_STEPS, (account_s - waiting_s) / max(step_s - plan.off_s, 1e-9))
                    steps = max(1, int(min(most, 2 + waiting_s / max(step_loss_s, 1e-9))))
                loss_s = waiting_s + steps * step_loss_s
                if loss_s <= self._purse * plan.unit_s:
                    self._purse -= loss_s / plan.unit_s
                    self._next_probe = place + 1
                    self._again = (plan.asked[0], tried, steps - 1) if steps > 1 else None
                    return tried if any(tried.values()) else plan.off
            if others:
                return plan.best
        return plan.best

    def _tries(self, plan: _Plan, candidates: Sequence[Candidate], depth: int) -> Iterable[dict[int, int]]:
        """Depths to try: all have that one, or, where rows wait, the one for which least does."""
        waits = {of.sequence: sum(rows_to_take_in(of.behind, depth)) for of in candidates}
        waits_none = len(candidates) == 1 or not any(waits.values())
        if depth <= 1 or waits_none:
            yield {of.sequence: max(0, min(depth, of.most)) for of in candidates}
        if not waits_none:
            one = min(candidates, key=lambda of: waits[of.sequence])
            yield {**plan.best, one.sequence: max(0, min(depth, one.most))}


def _probe_order(most: int) -> list[int]:
    """One draft every other time: it costs least, and without it no other one holds."""
    return [depth for other in (*range(2, most + 1), 0) for depth in (1, other)]


_Asked = tuple[tuple[int, ...], int, int]
"""What depths are wanted for: sequences, rows of prompts, and the most rows of drafts."""
_Waits = Mapping[int, Sequence[tuple[float, float]]]
"""Of sequences for which rows wait, by depth: seconds of taking them in, and their part of a step."""


def _too_dear(waiting: _Waits, account_s: float) -> set[int]:
    """Sequences for which more waits than there is time for now, so that others begin first."""
    left_s = account_s / 2
    found = set()
    for sequence in sorted(waiting, key=lambda n: waiting[n][1][0]):
        left_s -= waiting[sequence][1][0]
        if left_s < 0:
            found.add(sequence)
    return found


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

    def without(self, sequences: Collection[int]) -> _Gains:
        """These have no drafts."""
        if not sequences:
            return self
        return _Gains({n: () if n in sequences else of for n, of in self.by_place.items()})

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
        if count:
            shallow = (draft for draft in self.sorted() if draft[1] < depth)
            for _, _, sequence in islice(shallow, count):
                depths[sequence] += 1
        return depths


@dataclass(slots=True)
class _Plan:
    """What was found: the best depths, the tokens a second and the seconds of a step that they give.

    Attributes:
        until: the step at which it is looked for again.
        off: no drafts, and what a step takes so.
        waiting_s: to take in what waits for those who draft, once.
        unit_s: of a step without drafts and without prompts.
    """

    asked: _Asked
    until: int
    gains: _Gains
    off: dict[int, int]
    off_s: float
    best: dict[int, int]
    best_rate: float
    best_s: float
    waiting_s: float
    unit_s: float
