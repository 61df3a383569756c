"""Users ask while workers are killed: every answer is right, or says that it may be asked for again.

    python -m benchmarks.serving.faults [--minutes 20] [--every 60] [--users 8] [--workers 3] [--survive 1]

Starts `potluck serve` on the shipped model with worker processes, and kills one of these every minute; only
processes that it started. Answers are compared with those of a server of one process that nobody disturbs.
Ends with exit code 1 where a text differs, a request hangs or ends in a way that a client cannot retry.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import psutil
import typer
from rich.console import Console

from benchmarks.serving.asks import Ask, Asks, Lengths
from benchmarks.serving.client import Answer, complete
from benchmarks.serving.server import Server, potluck

MODEL = Path(__file__).parents[2] / "models" / "potluck-tiny"
_ASKS = 24
"""Different ones; users take them in turn."""
_PATIENCE_S = 120.0
_LONGEST_WAIT_S = 5.0


@dataclass(slots=True)
class Tally:
    """What came of all requests.

    Attributes:
        outcomes: by kind; `wrong`, answered with another text than an undisturbed server's.
        slowest_s: from sending a request to its end.
        details: of what went wrong, a few.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    kills: int = 0
    slowest_s: float = 0.0
    details: list[str] = field(default_factory=list)

    def add(self, answer: Answer, expected: str) -> None:
        kind: str = answer.outcome
        if kind == "answered" and answer.text != expected:
            kind = "wrong"
            answer.detail = f"expected {expected!r}, got {answer.text!r}"
        self.outcomes[kind] += 1
        self.slowest_s = max(self.slowest_s, answer.ended_s - answer.begun_s)
        if kind != "answered" and len(self.details) < 20:
            self.details.append(f"{kind}: {answer.status} {answer.detail}")

    @property
    def is_right(self) -> bool:
        return not any(self.outcomes[kind] for kind in ("wrong", "failed", "hung"))


def some_asks(seed: int) -> list[Ask]:
    """Half of them greedy, half drawn with a seed of their own."""
    asks = Asks(seed, Lengths(48, 8, 256), Lengths(48, 8, 160))
    return [replace(asks.ask(number), temperature=0.8 * (number % 2)) for number in range(_ASKS)]


async def undisturbed(address: tuple[str, int], asks: Sequence[Ask]) -> list[str]:
    """Each ask's text, asked for one after another.

    Raises:
        RuntimeError: one was not answered.
    """
    texts = []
    for ask in asks:
        answer = await complete(address, ask)
        if answer.outcome != "answered":
            raise RuntimeError(f"an undisturbed server: {answer.outcome}, {answer.status} {answer.detail}")
        texts.append(answer.text)
    return texts


async def disturbed(
    server: Server, asks: Sequence[Ask], texts: Sequence[str], *, users: int, seconds: float, every_s: float
) -> Tally:
    """Load for so long, and one of the server's workers killed every `every_s`."""
    tally = Tally()
    until = time.monotonic() + seconds
    chosen = random.Random(len(asks))

    async def user(first: int) -> None:
        number = first
        while time.monotonic() < until:
            place = number % len(asks)
            answer = await complete(server.address, asks[place], _PATIENCE_S)
            tally.add(answer, texts[place])
            if answer.outcome != "answered":
                await asyncio.sleep(min(answer.retry_after_s, _LONGEST_WAIT_S))
            number += 1

    async def killer() -> None:
        while (left_s := until - time.monotonic()) > every_s / 2:
            await asyncio.sleep(min(every_s / 2 if not tally.kills else every_s, left_s))
            workers = server.workers()
            if workers and time.monotonic() < until:
                kill(chosen.choice(workers))
                tally.kills += 1

    await asyncio.gather(killer(), *(user(number * 3) for number in range(users)))
    return tally


def kill(process: psutil.Process) -> None:
    """At once, as a crash would."""
    with suppress(psutil.NoSuchProcess):
        process.kill()


def main(
    minutes: Annotated[float, typer.Option(min=0.05)] = 20.0,
    every: Annotated[float, typer.Option(min=1, help="Seconds from one kill to the next.")] = 60.0,
    users: Annotated[int, typer.Option(min=1)] = 8,
    workers: Annotated[int, typer.Option(min=1)] = 3,
    survive: Annotated[int, typer.Option(min=0)] = 1,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Run, and print what happened."""
    console = Console()
    asks = some_asks(seed)
    with potluck(MODEL) as alone:
        texts = asyncio.run(undisturbed(alone.address, asks))
    options = ("--workers", str(workers), "--survive", str(survive))
    with potluck(MODEL, options) as server:
        before = server.rss_bytes()
        tally = asyncio.run(disturbed(server, asks, texts, users=users, seconds=60 * minutes, every_s=every))
        grown = server.rss_bytes() - before
        left = len(server.workers())
    console.print(f"{minutes:g} minutes, {users} users, {tally.kills} workers killed: {dict(tally.outcomes)}")
    console.print(f"slowest request {tally.slowest_s:.1f} s; {left} workers run at the end")
    console.print(f"the server's process grew by {grown / 1e6:.1f} MB from its start")
    for detail in tally.details:
        console.print(detail, highlight=False)
    if not tally.is_right:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
