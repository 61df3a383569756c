"""Plans for every option and prints what to buy.

Run from the project's root: `python -m benchmarks.studies.shopping` (about three minutes on two idle cores)
answers the ten questions and writes docs/studies/shopping.md. With files of your own it answers those alone.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.published.report import write_parts
from benchmarks.studies.shopping.page import range_part, section
from benchmarks.studies.shopping.questions import Option, Question, load_question, load_questions
from benchmarks.studies.shopping.speeds import Speeds, speeds_on
from placement.errors import PotluckError
from placement.hardware.spread import packaged_spreads

PAGE = Path(__file__).parents[3] / "docs" / "studies" / "shopping.md"


def main(
    files: Annotated[
        list[Path] | None,
        typer.Argument(help="Questions of your own; without any, the ten.", metavar="[FILE]..."),
    ] = None,
) -> None:
    """Print the answers; without files also write them to docs/studies/shopping.md."""
    try:
        questions = [load_question(path) for path in files] if files else load_questions()
        sections = []
        for part in answered(questions):
            sections.append(part)
            print(part, flush=True)
        if not files:
            within = range_part(packaged_spreads().judged)
            write_parts(PAGE, {"range": within, "questions": "\n".join(sections)})
    except PotluckError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(error.exit_code) from None


def answered(questions: Sequence[Question]) -> Iterator[str]:
    """Each question's part of the page, in turn."""
    with ProcessPoolExecutor(2) as pool:
        found = pool.map(_speeds_of, [option for question in questions for option in question.options])
        for number, question in enumerate(questions, 1):
            yield section(number, question, [next(found) for _ in question.options])


def _speeds_of(option: Option) -> Speeds:
    return speeds_on(option.cluster, keep_head=option.keep_head)


if __name__ == "__main__":
    typer.run(main)
