"""The parts of docs/studies/shopping.md that are computed: each question with its speeds and its answer."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap

from benchmarks.studies.shopping.answer import Planned, answer, present, times, tokens
from benchmarks.studies.shopping.questions import Option, Question
from benchmarks.studies.shopping.speeds import Speed, Speeds
from benchmarks.studies.whole_steps import CONTEXTS
from placement.hardware.spread import Range
from placement.units import between

_WIDTH = 118
_FILES = "../../benchmarks/studies/shopping"


def range_part(within: Range) -> str:
    """One sentence."""
    return (
        f"The range is {within.low:.2f} to {within.high:.2f} of a prediction, so a gain counts from "
        f"{within.margin:.0%} on.\n"
    )


def section(number: int, question: Question, found: Sequence[Speeds]) -> str:
    """One question.

    Args:
        found: of each of its options.
    """
    pairs = list(zip(question.options, found, strict=True))
    planned = [Planned(option.name, option.is_now, speeds.by_context) for option, speeds in pairs]
    notes = [f"- No room: {option.name}. {speeds.note}" for option, speeds in pairs if speeds.note]
    notes += [
        f"- The head of {option.name} is best on {speeds.head}, so these figures are with it there."
        for option, speeds in pairs
        if speeds.head is not None
    ]
    lines = [
        f"## {number}. {question.title}",
        "",
        *wrap(question.text, _WIDTH),
        "",
        *wrap(f"**Answer.** {answer(planned, CONTEXTS)}", _WIDTH),
        "",
        *_table(question.options, planned),
        *([""] if notes else []),
        *(line for note in notes for line in wrap(note, _WIDTH, subsequent_indent="  ")),
        "",
        f"The boxes: [{question.file}]({_FILES}/{question.file})",
    ]
    return "\n".join(lines) + "\n"


def _table(options: Sequence[Option], planned: Sequence[Planned]) -> list[str]:
    """Rows of a table; what there is nothing to say of has no column."""
    now = present(planned)
    has_prices = any(option.price is not None for option in options)
    heading = ["option", *(f"tokens/s at {context:,}" for context in CONTEXTS), "remote layers"]
    heading += ["by now"] if now is not None else []
    heading += ["price", "gain for 100"] if has_prices else []
    lines = [_row(heading), "|---" * len(heading) + "|"]
    for option, one in zip(options, planned, strict=True):
        speed = one.speeds[0]
        ratio = None if now is None else _ratio(speed, now.speeds[0])
        cells = [f"{option.name} (now)" if option.is_now else option.name, *map(_cell, one.speeds)]
        cells.append("" if speed is None else f"{speed.remote_layers:.1f}")
        if now is not None:
            cells.append("" if ratio is None or option.is_now else times(ratio))
        if has_prices:
            price = "" if option.price is None else f"{option.price:g}"
            cells += [price, _gain_for_100(ratio, option.price)]
        lines.append(_row(cells))
    return lines


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _ratio(speed: Speed | None, now: Speed | None) -> float | None:
    return None if speed is None or now is None else speed.tokens_per_s / now.tokens_per_s


def _cell(speed: Speed | None) -> str:
    if speed is None:
        return "no room"
    drafts = f"{speed.drafts} draft{'' if speed.drafts == 1 else 's'}"
    return f"{tokens(speed.tokens_per_s)} ({between(speed.likely.low, speed.likely.high)}), {drafts}"


def _gain_for_100(ratio: float | None, price: float | None) -> str:
    return "" if ratio is None or not price else f"{100 * (ratio - 1) / price * 100:+.1f}%"
