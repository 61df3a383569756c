"""What recorded runs of a server say of its other loads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from benchmarks.serving.load import Load
from benchmarks.serving.recording import Step
from benchmarks.serving.step_costs import Experts, StepCosts


@dataclass(frozen=True, slots=True)
class Run:
    """One number of users on a server, and the server's steps meanwhile, in order."""

    load: Load
    steps: Sequence[Step]

    @property
    def firsts(self) -> list[int]:
        """Number of the first ask of each round."""
        sent = set(self.load.sent)
        return sorted(number for number in sent if number - 1 not in sent)


@dataclass(frozen=True, slots=True)
class OnTheWay:
    """Seconds of a request that its server's engine does not see.

    Attributes:
        in_s: from sending it until the engine is asked.
        first_s: from the step that gives the first token until it is read.
        last_s: from the last step until its user has read all and sends the next one.
    """

    in_s: float = 0.0
    first_s: float = 0.0
    last_s: float = 0.0

    @classmethod
    def of(cls, run: Run) -> OnTheWay | None:
        """The medians in the windows of a run; None where nothing was answered, or more than was recorded.

        One request seldom overtakes another, so the times of server and clients are held together in order.
        """
        answered = [answer for answer in run.load.answers if answer.outcome == "answered"]
        first = [(step.ended_s, wait_s) for step in run.steps for wait_s in step.first_s]
        last = [step.ended_s for step in run.steps for _ in step.stayed_s]
        if not answered or not len(answered) == len(first) == len(last):
            return None
        asked = [ended_s - wait_s for ended_s, wait_s in first]
        said = [ended_s for ended_s, _ in first]
        has = run.load.has
        return cls(
            _later_s([answer.begun_s for answer in answered], asked, has),
            _later_s(said, [answer.pieces_s[0] for answer in answered], has),
            _later_s(last, [answer.ended_s for answer in answered], has),
        )


def _later_s(sooner: Iterable[float], later: Iterable[float], counts: Callable[[float], bool]) -> float:
    """The median from one to the other, of those whose later time counts; of all where none does."""
    pairs = list(zip(sorted(sooner), sorted(later), strict=True))
    inside = [pair for pair in pairs if counts(pair[1])]
    return max(0.0, median(after - before for before, after in inside or pairs))


@dataclass(frozen=True, slots=True)
class Acceptance:
    """How often drafts hold.

    Attributes:
        chances: by position, each given those before it; of those positions that were tried.
        variance: of the first draft's chance, from text to text.
    """

    chances: tuple[float, ...] = ()
    variance: float = 0.0

    @classmethod
    def of(cls, steps: Iterable[Step]) -> Acceptance:
        """What drafts of recorded steps did. Numbers of sequences that no two texts have in common."""
        by_place, by_text = dict[int, _Tries](), dict[int, _Tries]()
        for step in steps:
            for writer, drafted, accepted in zip(step.writers, step.drafted, step.accepted, strict=True):
                for place in range(min(drafted, accepted + 1)):
                    by_place.setdefault(place, _Tries()).add(place < accepted)
                if drafted:
                    by_text.setdefault(writer, _Tries()).add(accepted > 0)
        chances = tuple(by_place[place].share for place in sorted(by_place))
        return cls(chances, _variance(list(by_text.values())) if by_text else 0.0)

    def drawn(self, random: np.random.Generator) -> tuple[float, ...]:
        """Of one text, by lot: the first by a Beta distribution, and the next ones as much more or less.

        A later draft is tried only where those before it held, so more often in texts whose drafts hold more
        often. For a usual text its share is too high, by variance / mean for each draft before it.
        """
        if not self.variance:
            return self.chances
        mean = self.chances[0]
        both = mean * (1 - mean) / self.variance - 1
        more = random.beta(mean * both, (1 - mean) * both) - mean
        later = self.variance / mean
        found = (chance + more - place * later for place, chance in enumerate(self.chances))
        return tuple(min(1.0, max(0.0, chance)) for chance in found)


@dataclass(slots=True)
class _Tries:
    tried: int = 0
    held: int = 0

    def add(self, held: bool) -> None:
        self.tried += 1
        self.held += held

    @property
    def share(self) -> float:
        return self.held / self.tried


def _variance(texts: Sequence[_Tries]) -> float:
    """Of chances that texts have, without what few tries of each add to it by lot.

    Each try counts alike, as by Kleinman (1973), 'Proportions with extraneous variance'.
    """
    tried = sum(text.tried for text in texts)
    mean = sum(text.held for text in texts) / tried
    both = mean * (1 - mean)
    between = sum(text.tried * (text.share - mean) ** 2 for text in texts)
    lots = len(texts) - 1
    room = tried - sum(text.tried**2 for text in texts) / tried
    found = (between - lots * both) / (room - lots) if room > lots else 0.0
    # A Beta distribution has less than that of a chance which is 0 or 1.
    return min(max(0.0, found), 0.9 * both)


@dataclass(frozen=True, slots=True)
class Learned:
    """What a server's steps and clients say.

    Attributes:
        on_the_way: by users, ascending.
    """

    costs: StepCosts
    acceptance: Acceptance
    on_the_way: Mapping[int, OnTheWay]

    @classmethod
    def of(cls, runs: Sequence[Run], experts: Experts) -> Learned:
        """From several runs.

        Raises:
            ValueError: there is no step.
        """
        costs = StepCosts.of([run.steps for run in runs], experts)
        ways = {run.load.users: found for run in runs if (found := OnTheWay.of(run)) is not None}
        acceptance = Acceptance.of(step for run in runs for step in run.steps)
        return cls(costs, acceptance, dict(sorted(ways.items())))

    def way(self, users: int, sequences: int) -> OnTheWay:
        """A straight line through the numbers of users that were seen, least squares.

        Those on the way meet as many others as are answered at a time, `sequences` at most.
        """
        if not self.on_the_way:
            return OnTheWay()
        seen = [min(each, sequences) for each in self.on_the_way]
        degree = min(1, len(set(seen)) - 1)

        def at(seconds: list[float]) -> float:
            return max(0.0, float(np.polyval(np.polyfit(seen, seconds, degree), min(users, sequences))))

        ways = self.on_the_way.values()
        return OnTheWay(
            at([way.in_s for way in ways]),
            at([way.first_s for way in ways]),
            at([way.last_s for way in ways]),
        )
