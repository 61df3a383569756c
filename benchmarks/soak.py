"""A random failure every 20 seconds: the text is always right, memory and descriptors stay flat.

    python -m benchmarks.soak [--minutes 30] [--every 20] [--seed 0]

Three workers on this machine, potluck-tiny in float32, every expert on two of them. Texts are generated one
after another, greedily and with seeds, and compared with those of one process. Ends with exit code 1 where a
token differs, or where memory or descriptors grow.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Annotated

import psutil
import typer
from rich.console import Console

from benchmarks.faults import KINDS, Kind
from orchestrator.session import open_session
from tests.faults.run import MODEL, PROMPT, Trial, params, plan_of, trial
from workers.formats.open_model import open_model

TOKENS = 64
LASTS_S = 5.0
"""How long a failure lasts that does not pass by itself; then it is undone."""
# What caches and allocators may still take after the first texts.
GROWTH_BYTES, GROWTH_DESCRIPTORS = 40_000_000, 20
WARM_UP = 10


@dataclass(frozen=True, slots=True)
class Size:
    """Of the head's process."""

    num_bytes: int
    descriptors: int

    @classmethod
    def now(cls) -> Size:
        process = psutil.Process()
        return cls(process.memory_info().rss, process.num_fds())


class Harm(Thread):
    """Does a random failure every `every_s` seconds to a random worker, and undoes it."""

    def __init__(self, made: Trial, every_s: float, seed: int) -> None:
        super().__init__(daemon=True)
        self.done: Counter[str] = Counter()
        self._made = made
        self._every_s = every_s
        self._random = random.Random(seed)
        self._ending = Event()

    def run(self) -> None:
        names = list(self._made.workers.pids)
        while not self._ending.wait(self._every_s):
            kind, name = self._random.choice(KINDS), self._random.choice(names)
            if name in self._made.workers.pids:
                self._do(kind, name)

    def end(self) -> None:
        self._ending.set()
        self.join()

    def _do(self, kind: Kind, name: str) -> None:
        pid = self._made.workers.pids[name]
        kind.harm(self._made, name)
        self.done[kind.name] += 1
        self._ending.wait(min(LASTS_S, self._every_s / 2))
        # It may have been started again meanwhile.
        if kind.name != "suspended box" or self._made.workers.pids.get(name) == pid:
            kind.undo(self._made, name)


def main(
    minutes: Annotated[float, typer.Option(min=0.1)] = 30.0,
    every: Annotated[float, typer.Option(min=1, help="Seconds from one failure to the next.")] = 20.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the failures.")] = 0,
) -> None:
    """Run, and print what happened."""
    model = open_model(MODEL)
    wanted = [params(TOKENS), params(TOKENS, seeded=True), params(TOKENS, mtp=3)]
    with open_session(model, plan_of(model, 1, 0), num_drafts=3) as session:
        expected = [session.generate(PROMPT, each).token_ids for each in wanted]
    texts = wrong = 0
    longest_s = 0.0
    first: Size | None = None
    with (
        tempfile.TemporaryDirectory(dir="/tmp") as folder,
        trial(plan_of(model, 2), Path(folder), with_cables=True, num_drafts=3) as made,
    ):
        harm = Harm(made, every, seed)
        harm.start()
        until = time.monotonic() + 60 * minutes
        try:
            while time.monotonic() < until:
                found = made.generate(wanted[texts % len(wanted)])
                wrong += found.token_ids != expected[texts % len(wanted)]
                longest_s = max(longest_s, found.longest_s)
                texts += 1
                if texts == WARM_UP:
                    first = Size.now()
        finally:
            harm.end()
        last, events = Size.now(), {kind: count for kind, count in made.events().items() if count}
    print_it = Console().print
    print_it(f"{texts} texts of {TOKENS} tokens in {minutes:g} minutes, {wrong} of them wrong")
    print_it(f"longest step: {longest_s:.2f} s")
    print_it(f"failures: {dict(harm.done)}")
    print_it(f"events: {events}")
    if first is None:
        return
    grown = Size(last.num_bytes - first.num_bytes, last.descriptors - first.descriptors)
    print_it(f"the head's process grew by {grown.num_bytes / 1e6:.1f} MB and {grown.descriptors} descriptors")
    if wrong or grown.num_bytes > GROWTH_BYTES or grown.descriptors > GROWTH_DESCRIPTORS:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
