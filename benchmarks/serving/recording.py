"""The command `potluck`, whose scheduler also writes what each step was and took.

    python -m benchmarks.serving.recording STEPS.jsonl serve --model DIR

`-` for STEPS.jsonl writes nothing. Lines are written as steps end, so they outlive the process.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO
from unittest import mock

from orchestrator.cli.main import main as potluck
from orchestrator.scheduler import Scheduler
from orchestrator.scheduling.step_plan import StepOutcome, StepPlan


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a server.

    Attributes:
        ended_s: on time.monotonic's clock, which all processes of a machine share.
        took_s: as the scheduler is told; `drafting_s`: the MTP layers' part of it.
        decoded: sequences that were decoded; `drafted`, `accepted`: drafts of each.
        prompt_rows: of prompts.
    """

    ended_s: float
    took_s: float
    drafting_s: float
    drafting_rows: int
    decoded: int
    drafted: tuple[int, ...]
    accepted: tuple[int, ...]
    prompt_rows: int

    @property
    def rows(self) -> int:
        return self.decoded + sum(self.drafted) + self.prompt_rows

    @classmethod
    def of(cls, plan: StepPlan, outcome: StepOutcome, took_s: float, ended_s: float) -> Step:
        decoded = [outcome.by_sequence[part.sequence] for part in plan.decode]
        return cls(
            ended_s,
            took_s,
            outcome.drafting_s,
            outcome.drafting_rows,
            len(decoded),
            tuple(advance.drafted for advance in decoded),
            tuple(advance.accepted for advance in decoded),
            plan.prefill_rows,
        )


def read_steps(lines: Iterable[str]) -> list[Step]:
    """What was written; a last line that is not whole is left out."""
    steps = []
    for line in lines:
        if line.endswith("\n"):
            raw = json.loads(line)
            raw |= {name: tuple(raw[name]) for name in ("drafted", "accepted")}
            steps.append(Step(**raw))
    return steps


class Recording(Scheduler):
    """A scheduler that writes what it is told of steps."""

    out: TextIO

    def finished_step(self, plan: StepPlan, outcome: StepOutcome, took_s: float) -> None:
        """See `Scheduler.finished_step`."""
        super().finished_step(plan, outcome, took_s)
        step = Step.of(plan, outcome, took_s, time.monotonic())
        self.out.write(json.dumps(asdict(step)) + "\n")


def main() -> None:
    """Run the command."""
    place, sys.argv[1:] = sys.argv[1], sys.argv[2:]
    sys.argv[0] = "potluck"
    if place == "-":
        potluck()
        return
    from orchestrator.serving import engine

    with (
        Path(place).open("w", buffering=1) as Recording.out,
        mock.patch.object(engine, "Scheduler", Recording),
    ):
        potluck()


if __name__ == "__main__":
    main()
