"""Events of an answer, and where in the model's text their characters stand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.serving.answer import CallArguments, CallEnded, CallStarted, Reasoning, Text

AnswerPart = Reasoning | Text | CallStarted | CallArguments | CallEnded


@dataclass(frozen=True, slots=True)
class Parsed:
    """An event, and of a Text the characters of the model's text that it consists of: from start to end."""

    event: AnswerPart
    start: int = 0
    end: int = 0


def merge(parsed: Sequence[Parsed]) -> list[Parsed]:
    """The same with neighbouring pieces of one kind put together."""
    merged: list[Parsed] = []
    run: list[str] = []
    for one in parsed:
        last = merged[-1] if merged else None
        if last is not None and _goes_on(last, one):
            assert isinstance(one.event, Reasoning | Text | CallArguments)
            run.append(one.event.text)
            merged[-1] = Parsed(last.event, last.start, one.end)
            continue
        _put_together(merged, run)
        merged.append(one)
    _put_together(merged, run)
    return merged


def _put_together(merged: list[Parsed], run: list[str]) -> None:
    """Give the last event all the text that belongs to it."""
    if not run:
        return
    last = merged[-1]
    event = last.event
    assert isinstance(event, Reasoning | Text | CallArguments)
    text = event.text + "".join(run)
    run.clear()
    if isinstance(event, CallArguments):
        merged[-1] = Parsed(CallArguments(event.call_id, text))
    else:
        merged[-1] = Parsed(type(event)(text), last.start, last.end)


def _goes_on(last: Parsed, one: Parsed) -> bool:
    if isinstance(last.event, CallArguments):
        return isinstance(one.event, CallArguments) and one.event.call_id == last.event.call_id
    if isinstance(last.event, Text):
        return isinstance(one.event, Text) and one.start == last.end
    return isinstance(last.event, Reasoning) and isinstance(one.event, Reasoning)
