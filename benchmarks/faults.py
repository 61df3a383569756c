"""How long a step takes that a failure interrupts, by kind of failure, with a replica and without.

    python -m benchmarks.faults [--runs 20] [--load-minutes 0]

Three workers on this machine, potluck-tiny in float32. Each run generates a text, does harm in the middle,
and compares every token with those of one process without workers. A step's lengthening is the longest step
less the median one. With --load-minutes, two processes keep the cores busy for so long while nothing fails,
and every suspicion then is a false one.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from orchestrator.session import open_session
from tests.faults.run import MODEL, PROMPT, WORKERS, Trial, params, plan_of, trial
from workers.formats.open_model import open_model

TOKENS, AT = 48, 16
_BUSY = "while True: pass"


@dataclass(frozen=True, slots=True)
class Kind:
    """A failure.

    Attributes:
        harm, undo: what does it to a worker, and what undoes it after the text.
        alone: whether to have it without a replica too.
        is_left_out: the worker is given up, and asked nothing for longer each time: each run begins anew.
    """

    name: str
    harm: Callable[[Trial, str], None]
    undo: Callable[[Trial, str], None]
    alone: bool = True
    is_left_out: bool = False


def nothing(made: Trial, name: str) -> None:
    """It passes by itself."""


KINDS = (
    Kind("kill -9", lambda made, name: made.kill(name), nothing),
    Kind("pulled cable", lambda made, name: made.cables[name].pull(), lambda m, n: m.cables[n].plug_in()),
    Kind("suspended box", lambda made, name: made.pause(name), lambda m, n: m.resume(n)),
    Kind("closed by the head's kernel", lambda m, name: m.cables[name].close_head_side(), nothing),
    Kind("closed by the worker's kernel", lambda m, name: m.cables[name].close_worker_side(), nothing),
    Kind(
        "hangs in its computation",
        lambda m, n: m.misbehave(n, "hang"),
        lambda m, n: m.behave(n),
        is_left_out=True,
    ),
    Kind("refuses", lambda m, n: m.misbehave(n, "refuse"), lambda m, n: m.behave(n), is_left_out=True),
    Kind("10 x slower", lambda m, n: m.misbehave(n, "slow 10"), lambda m, n: m.behave(n), alone=False),
)


@dataclass(frozen=True, slots=True)
class Figures:
    """Of the runs with one kind of failure. `wrong_tokens`: lost, repeated or changed."""

    longer_s: list[float]
    wrong_tokens: int

    def cells(self) -> tuple[str, str, str]:
        median, worst = statistics.median(self.longer_s), max(self.longer_s)
        return f"{median:.3f}", f"{worst:.3f}", str(self.wrong_tokens)


def measure(kind: Kind, copies: int, expected: Sequence[int], runs: int) -> Figures:
    """Do one kind of harm so many times, to one worker after another."""
    longer: list[float] = []
    wrong = 0
    at_once = 1 if kind.is_left_out else runs
    for first in range(0, runs, at_once):
        with opened(copies) as made:
            for run in range(first, first + at_once):
                made.wait_all_well()
                name = WORKERS[run % len(WORKERS)]
                found = made.generate(params(TOKENS), {AT: partial(kind.harm, made, name)})
                kind.undo(made, name)
                longer.append(found.longest_s - statistics.median(found.steps_s))
                wrong += sum(a != b for a, b in zip(found.token_ids, expected, strict=False))
                wrong += abs(len(found.token_ids) - len(expected))
    return Figures(longer, wrong)


@contextmanager
def opened(copies: int) -> Iterator[Trial]:
    """A session that can be hurt, every expert on so many of its workers."""
    with (
        tempfile.TemporaryDirectory(dir="/tmp") as folder,
        trial(plan_of(open_model(MODEL), copies), Path(folder), with_cables=True) as made,
    ):
        yield made


@contextmanager
def busy_cores(count: int) -> Iterator[None]:
    """So many processes that only compute."""
    programs = [subprocess.Popen([sys.executable, "-c", _BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()


def false_suspicions(minutes: float) -> tuple[int, int, int]:
    """Suspicions, deaths and wrong tokens while nothing fails and the cores are busy."""
    expected = whole(TOKENS)
    wrong = 0
    with opened(2) as made, busy_cores(2):
        before = dict(made.events())
        until = time.monotonic() + 60 * minutes
        while time.monotonic() < until:
            wrong += made.generate(params(TOKENS)).token_ids != expected
        after = made.events()
    return after["suspected"] - before["suspected"], after["died"] - before["died"], wrong


def whole(tokens: int) -> tuple[int, ...]:
    """What one process gives."""
    model = open_model(MODEL)
    with open_session(model, plan_of(model, 1, 0)) as session:
        return session.generate(PROMPT, params(tokens)).token_ids


def main(
    runs: Annotated[int, typer.Option(min=1, help="Of each kind.")] = 20,
    load_minutes: Annotated[float, typer.Option(min=0, help="Look for false suspicions so long.")] = 0.0,
) -> None:
    """Print the table."""
    expected = whole(TOKENS)
    with_replica, without = "with a replica", "without"
    columns = (
        f"{which}: {what}" for which in (with_replica, without) for what in ("median s", "worst s", "wrong")
    )
    table = Table("failure", *columns)
    errors = Console(stderr=True)
    found: dict[tuple[str, int], Figures] = {}
    for copies, kind in ((copies, kind) for copies in (2, 1) for kind in KINDS):
        if copies == 2 or kind.alone:
            found[kind.name, copies] = figures = measure(kind, copies, expected, runs)
            errors.print(f"{kind.name}, {copies} holders: {', '.join(figures.cells())}")
    for kind in KINDS:
        alone = found[kind.name, 1].cells() if kind.alone else ("", "", "")
        table.add_row(kind.name, *found[kind.name, 2].cells(), *alone)
    Console().print(table)
    if load_minutes:
        suspected, died, wrong = false_suspicions(load_minutes)
        Console().print(
            f"{load_minutes:g} minutes with busy cores: {suspected} false suspicions, {died} false deaths, "
            f"{wrong} wrong texts"
        )


if __name__ == "__main__":
    typer.run(main)
