"""So many users at a time, each of whom asks again as soon as an answer is there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.serving.asks import Asks
from benchmarks.serving.client import Answer, complete

LONGEST_WAIT_S = 5.0
"""After a refusal a user waits as long as it says, but no longer than this."""


@dataclass(frozen=True, slots=True)
class Window:
    """What is measured of a run, on time.monotonic's clock."""

    start_s: float
    stop_s: float

    @property
    def seconds(self) -> float:
        return self.stop_s - self.start_s

    def has(self, at_s: float) -> bool:
        return self.start_s <= at_s < self.stop_s


@dataclass(frozen=True, slots=True)
class Load:
    """One run of `users` users: all that they got, the warm-up and what ended behind the window included.

    Attributes:
        windows: one, or several of runs whose results are taken together.
        sent: numbers of the asks in the order in which they were sent.
    """

    users: int
    windows: Sequence[Window]
    answers: Sequence[Answer]
    sent: Sequence[int]

    @property
    def seconds(self) -> float:
        return sum(window.seconds for window in self.windows)

    def has(self, at_s: float) -> bool:
        """Whether it is within a window."""
        return any(window.has(at_s) for window in self.windows)

    @classmethod
    def joined(cls, loads: Sequence[Load]) -> Load:
        """Runs of as many users, at least one."""
        windows = [window for load in loads for window in load.windows]
        answers = [answer for load in loads for answer in load.answers]
        return cls(loads[0].users, windows, answers, [number for load in loads for number in load.sent])


async def run_load(
    address: tuple[str, int], asks: Asks, users: int, *, warm_up_s: float, seconds: float, first: int = 0
) -> Load:
    """Drive a server. The window ends while everybody still asks; then the last answers are waited for.

    Args:
        first: number of the first ask.
    """
    begun_s = time.monotonic()
    window = Window(begun_s + warm_up_s, begun_s + warm_up_s + seconds)
    answers: list[Answer] = []
    sent: list[int] = []

    async def user() -> None:
        while time.monotonic() < window.stop_s:
            number = first + len(sent)
            sent.append(number)
            answer = await complete(address, asks.ask(number))
            answers.append(answer)
            if answer.outcome != "answered":
                await asyncio.sleep(min(answer.retry_after_s, LONGEST_WAIT_S))

    await asyncio.gather(*(user() for _ in range(users)))
    return Load(users, (window,), answers, sent)


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one load, within its window.

    Attributes:
        first_p50_s, first_p99_s: from sending a request to the first piece of its answer.
        gap_p50_s, gap_p99_s: between the pieces of an answer; a step's tokens come as one piece.
        refused: requests that may be sent again; failed: those with any other end but an answer.
        acceptance: share of drafts that became tokens; None without drafts.
    """

    users: int
    tokens_per_s: float
    first_p50_s: float
    first_p99_s: float
    gap_p50_s: float
    gap_p99_s: float
    answered: int
    refused: int
    failed: int
    acceptance: float | None


def figures(load: Load) -> Figures:
    """A piece counts for as many tokens as its answer had on average; the API does not say them by piece."""
    tokens, firsts, gaps = 0.0, list[float](), list[float]()
    for answer in load.answers:
        if not answer.pieces_s:
            continue
        if load.has(answer.pieces_s[0]):
            firsts.append(answer.first_s)
        inside = sum(load.has(at_s) for at_s in answer.pieces_s)
        tokens += answer.tokens * inside / len(answer.pieces_s)
        gaps += [gap for gap, at_s in zip(answer.gaps_s, answer.pieces_s[1:], strict=True) if load.has(at_s)]
    ended = [answer for answer in load.answers if load.has(answer.ended_s)]
    drafted = sum(answer.drafted for answer in ended)
    return Figures(
        load.users,
        tokens / load.seconds,
        *_percentiles(firsts),
        *_percentiles(gaps),
        sum(answer.outcome == "answered" for answer in ended),
        sum(answer.outcome == "refused" for answer in ended),
        sum(answer.outcome not in ("answered", "refused") for answer in ended),
        sum(answer.accepted for answer in ended) / drafted if drafted else None,
    )


def _percentiles(seconds: Iterable[float]) -> tuple[float, float]:
    found = list(seconds)
    if not found:
        return float("nan"), float("nan")
    p50, p99 = np.percentile(found, (50, 99))
    return float(p50), float(p99)
