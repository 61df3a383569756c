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
    pairs = list(zip(sorted(sooner), sorted(later), strict=True))
    inside = [pair for pair in pairs if counts(pair[1])]
    return max(0.0, median(after - before for before, after in inside or pairs))


@dataclass(frozen=True, slots=True)
class Learned:
    """What a server's steps and clients say.

    Attributes:
        acceptance: of drafts by position, each given those before it; of those positions that were tried.
        on_the_way: by users, ascending.
    """

    costs: StepCosts
    acceptance: tuple[float, ...]
    on_the_way: Mapping[int, OnTheWay]

    @classmethod
    def of(cls, runs: Sequence[Run], experts: Experts) -> Learned:
        """From several runs.

        Raises:
            ValueError: there is no step.
        """
        costs = StepCosts.of([run.steps for run in runs], experts)
        ways = {run.load.users: found for run in runs if (found := OnTheWay.of(run)) is not None}
        return cls(costs, _acceptance(step for run in runs for step in run.steps), dict(sorted(ways.items())))

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


def _acceptance(steps: Iterable[Step]) -> tuple[float, ...]:
    held, tried = list[int](), list[int]()
    for step in steps:
        for drafted, accepted in zip(step.drafted, step.accepted, strict=True):
            for place in range(min(drafted, accepted + 1)):
                if place == len(tried):
                    tried.append(0)
                    held.append(0)
                tried[place] += 1
                held[place] += place < accepted
    return tuple(h / t for h, t in zip(held, tried, strict=True))
