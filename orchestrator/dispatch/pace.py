"""How long workers take to answer: when an answer is late, and which workers are too slow."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from statistics import median

from placement.patience import Patience

# Answers of one worker and size that are remembered, and how many make a tail that means something.
_REMEMBERED = 128
_ENOUGH = 16
# Where nothing is known yet, a request may take this long, and its pairs this much longer each.
_UNKNOWN_S = 1.0
_UNKNOWN_PAIR_S = 0.002
# Where too few answers are known, so many times as long as the slowest of them, and this long at least.
_FEW = 8.0
_FEW_S = 0.25
# An answer is late after so many times the 99th percentile.
_LATE = 2.0
# Requests of decode steps tell how slow a worker is; those of prefill take turns with too much else.
_MOST_PAIRS = 64
# Larger requests whose size is remembered: more than workers may have open.
_LARGE_REMEMBERED = 256
# A worker that was passed over is asked as before once it is no slower than this. What is older than a while
# counts no more, so that it is tried again.
_WELL = 1.5
_FORGET_S = 30.0
# One long pause says little about all the other answers.
_MOST_S = 0.25


class Pace:
    """Answer times of each worker, by the size of what was asked.

    Sizes are powers of two of (row, expert) pairs. Only the head's thread uses it.

    Args:
        expected_s: of a request by worker: what asking costs, and each expert, in any unit that all share.
    """

    def __init__(self, expected_s: Sequence[tuple[float, float]], patience: Patience) -> None:
        self._patience = patience
        self._times: dict[tuple[int, int], deque[float]] = {}
        self._notes: dict[tuple[int, int], int] = {}
        self._late_s: dict[tuple[int, int], float] = {}
        self._expected_s = list(expected_s)
        self._ratios: dict[int, deque[tuple[float, float]]] = {}
        self._seen_slow: set[int] = set()
        self._factors: dict[int, float] = {}
        self._large: dict[int, int] = {}

    def expect(self, expected_s: Sequence[tuple[float, float]]) -> None:
        """A new view: the same workers first, perhaps more behind."""
        self._expected_s = list(expected_s)

    def asks(self, request_id: int, pairs: int) -> None:
        """A request leaves."""
        if pairs > _MOST_PAIRS:
            self._large[request_id] = pairs
            if len(self._large) > _LARGE_REMEMBERED:
                del self._large[next(iter(self._large))]

    def pairs_at_most(self, request_id: int) -> int:
        """Of a request that was asked once, whoever waits for it now."""
        return self._large.get(request_id, _MOST_PAIRS)

    def note(self, worker: int, pairs: int, elapsed_s: float, now_s: float) -> None:
        """`worker` has answered a request of `pairs` after `elapsed_s`."""
        key = worker, pairs.bit_length()
        times = self._times.get(key)
        if times is None:
            times = self._times[key] = deque(maxlen=_REMEMBERED)
            self._notes[key] = 0
        times.append(elapsed_s)
        self._notes[key] += 1
        if self._notes[key] % _ENOUGH == 0:
            # The 99th percentile of up to 128 is the second largest, of fewer the largest.
            tail = sorted(times)
            p99_s = tail[-2] if len(tail) == _REMEMBERED else tail[-1]
            self._late_s[key] = max(self._patience.hedge_floor_s, _LATE * p99_s)
        self._note_ratio(worker, pairs, elapsed_s, now_s)

    def overtaken(self, worker: int, pairs: int, elapsed_s: float, now_s: float) -> None:
        """Others have answered in `worker`'s place, which has taken `elapsed_s` at least."""
        self._note_ratio(worker, pairs, elapsed_s, now_s)

    def _note_ratio(self, worker: int, pairs: int, elapsed_s: float, now_s: float) -> None:
        if pairs <= _MOST_PAIRS:
            ask_s, expert_s = self._expected_s[worker]
            ratio = min(elapsed_s, _MOST_S) / (ask_s + pairs * expert_s)
            ratios = self._ratios.get(worker)
            if ratios is None:
                ratios = self._ratios[worker] = deque(maxlen=2 * _ENOUGH)
            ratios.append((now_s, ratio))

    def known_late_s(self, worker: int, pairs: int) -> float | None:
        """`late_after_s` of a size that it has answered often enough, else None."""
        return self._late_s.get((worker, pairs.bit_length()))

    def late_after_s(self, worker: int, pairs: int) -> float:
        """How long an answer of that size may take before others are asked too."""
        size = pairs.bit_length()
        known = self._late_s.get((worker, size))
        if known is not None:
            return known
        for smaller in range(size - 1, 0, -1):
            known = self._late_s.get((worker, smaller))
            if known is not None:
                return known * 2.0 ** (size - smaller)
        unknown_s = _UNKNOWN_S + pairs * _UNKNOWN_PAIR_S
        few = self._times.get((worker, size))
        return min(unknown_s, max(_FEW_S, _FEW * max(few))) if few else unknown_s

    def factors(self, now_s: float) -> dict[int, float]:
        """Workers that take too long (`Patience.slow_factor`), and how many times as long as they should.

        A worker is compared with the median of the others now, beside what is expected of each; one whose
        answers alone are known, with nobody. It counts as slow if it was found so twice in a row.
        """
        means: dict[int, float] = {}
        for worker, ratios in self._ratios.items():
            while ratios and ratios[0][0] < now_s - _FORGET_S:
                ratios.popleft()
            if len(ratios) >= _ENOUGH:
                means[worker] = sum(ratio for _, ratio in ratios) / len(ratios)
        found, seen = {}, set()
        for worker, mean in means.items():
            others = [each for other, each in means.items() if other != worker]
            if not others:
                break
            # A busy machine slows all of them down: then nobody is worse than others.
            factor = mean / median(others)
            if factor >= self._patience.slow_factor:
                seen.add(worker)
                if worker not in self._seen_slow:
                    continue
            if factor >= self._patience.slow_factor or (worker in self._factors and factor >= _WELL):
                # In steps of two, so that the choice does not flutter.
                found[worker] = 2.0 ** math.floor(math.log2(factor) + 0.5)
        self._factors, self._seen_slow = found, seen
        return dict(found)
