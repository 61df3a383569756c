"""The command `potluck`, whose engine also writes what each step was and took.

    python -m benchmarks.serving.recording STEPS.jsonl serve --model DIR

`-` for STEPS.jsonl writes nothing. Lines are written as steps end, so they outlive the process.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, TextIO
from unittest import mock

from orchestrator.cli.main import main as potluck
from orchestrator.scheduler import Scheduler
from orchestrator.scheduling.job import SequenceRequest
from orchestrator.scheduling.step_plan import StepOutcome, StepPlan


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a server.

    Attributes:
        ended_s: on time.monotonic's clock, which all processes of a machine share.
        took_s: as the scheduler is told; `drafting_s`: the MTP layers' part of it.
        drafting_rows: that waited for the MTP layers which drafted.
        writers: sequences that were decoded; `drafted`, `accepted`: drafts of each.
        prompts, prompt_rows: that were read, and their rows.
        asked: requests that came while it ran, those that were refused included.
        ended: requests that it ended; `left`: those that go on.
        first_s: of each request whose first token it gave, seconds since the engine was asked.
        stayed_s: of each request that ended with it, likewise.
    """

    ended_s: float
    took_s: float
    drafting_s: float
    drafting_rows: int
    writers: tuple[int, ...]
    drafted: tuple[int, ...]
    accepted: tuple[int, ...]
    prompts: int
    prompt_rows: int
    asked: int
    ended: int
    left: int
    first_s: tuple[float, ...] = ()
    stayed_s: tuple[float, ...] = ()

    @property
    def decoded(self) -> int:
        """Sequences that were decoded."""
        return len(self.writers)

    @property
    def rows(self) -> int:
        """Of the pass."""
        return self.decoded + sum(self.drafted) + self.prompt_rows

    @property
    def depth(self) -> int:
        """MTP layers that drafted."""
        return max(self.drafted, default=0)

    @classmethod
    def of(
        cls,
        plan: StepPlan,
        outcome: StepOutcome,
        took_s: float,
        ended_s: float,
        asked: int,
        left: int,
        first_s: tuple[float, ...] = (),
        stayed_s: tuple[float, ...] = (),
    ) -> Step:
        """What a step was, from what the scheduler ordered and was told; the others as in the class."""
        decoded = [outcome.by_sequence[part.sequence] for part in plan.decode]
        return cls(
            ended_s,
            took_s,
            outcome.drafting_s,
            outcome.drafting_rows,
            tuple(part.sequence for part in plan.decode),
            tuple(advance.drafted for advance in decoded),
            tuple(advance.accepted for advance in decoded),
            len(plan.prefill),
            outcome.prefill_rows,
            asked,
            sum(advance.ended is not None for advance in outcome.advances),
            left,
            first_s,
            stayed_s,
        )


def read_steps(lines: Iterable[str]) -> list[Step]:
    """What was written; a last line that is not whole is left out."""
    steps = []
    for line in lines:
        if line.endswith("\n"):
            raw = json.loads(line)
            raw |= {name: tuple(value) for name, value in raw.items() if isinstance(value, list)}
            steps.append(Step(**raw))
    return steps


class Recording(Scheduler):
    """A scheduler that writes what it is told of steps."""

    out: ClassVar[TextIO]
    asked_s: ClassVar[float]
    """When the engine was asked for the request that comes next."""
    all_asked_s: ClassVar[list[float]] = []
    """When it was asked for those that came since the last step."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._waiting: dict[int, float] = {}
        self._came: dict[int, float] = {}

    def submit(self, requests: Sequence[SequenceRequest], now_s: float) -> tuple[int, ...]:
        """See `Scheduler.submit`."""
        most = super().submit(requests, now_s)
        for request in requests:
            self._waiting[request.sequence] = self._came[request.sequence] = self.asked_s
        return most

    def finished_step(self, plan: StepPlan, outcome: StepOutcome, took_s: float) -> None:
        """See `Scheduler.finished_step`."""
        super().finished_step(plan, outcome, took_s)
        now_s = time.monotonic()
        spoke = [each.sequence for each in outcome.advances if each.tokens]
        first = tuple(now_s - self._waiting.pop(number) for number in spoke if number in self._waiting)
        ended = [each.sequence for each in outcome.advances if each.ended]
        stayed = tuple(now_s - self._came.pop(number) for number in ended if number in self._came)
        asked = sum(asked_s > now_s - took_s for asked_s in self.all_asked_s)
        self.all_asked_s.clear()
        step = Step.of(plan, outcome, took_s, now_s, asked, len(self._came), first, stayed)
        self.out.write(json.dumps(asdict(step)) + "\n")


_Ask = Callable[[Any, Callable[[], None]], Coroutine[Any, Any, None]]


def noting(ask: _Ask) -> _Ask:
    """`ModelEngine._ask` that notes when it is called. The engine takes requests between steps, so later."""

    async def noted(engine: Any, submit: Callable[[], None]) -> None:
        asked_s = time.monotonic()
        Recording.all_asked_s.append(asked_s)

        def submit_noted() -> None:
            Recording.asked_s = asked_s
            submit()

        await ask(engine, submit_noted)

    return noted


def main() -> None:
    """Run the command."""
    path, sys.argv[1:] = sys.argv[1], sys.argv[2:]
    sys.argv[0] = "potluck"
    if path == "-":
        potluck()
        return
    from orchestrator.serving import engine

    with (
        Path(path).open("w", buffering=1) as Recording.out,
        mock.patch.object(engine, "Scheduler", Recording),
        mock.patch.object(engine.ModelEngine, "_ask", noting(engine.ModelEngine._ask)),
    ):
        potluck()


if __name__ == "__main__":
    main()
