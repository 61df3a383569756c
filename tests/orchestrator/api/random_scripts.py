"""Answers as an engine may give them, in any order that it may."""

from __future__ import annotations

import json

from hypothesis import strategies as st

from orchestrator.serving.answer import (
    AnswerEvent,
    CallArguments,
    CallEnded,
    CallStarted,
    Prefilled,
    Reasoning,
    Text,
)
from tests.orchestrator.api.scripted import STARTED, finished, logprob

PIECES = st.text(min_size=1, max_size=6)
ARGUMENTS = st.dictionaries(st.text(max_size=4), st.text(max_size=6) | st.integers() | st.none(), max_size=3)


@st.composite
def calls(draw: st.DrawFn, number: int) -> list[AnswerEvent]:
    """A call whose arguments come in pieces."""
    name = draw(st.sampled_from(["weather", "apply_patch"]))
    arguments = {"input": draw(PIECES)} if name == "apply_patch" else draw(ARGUMENTS)
    text = json.dumps(arguments)
    cut = draw(st.integers(0, len(text)))
    pieces = [CallArguments(str(number), part) for part in (text[:cut], text[cut:]) if part]
    return [CallStarted(str(number), name), *pieces, CallEnded(str(number), arguments)]


@st.composite
def scripts(draw: st.DrawFn) -> list[AnswerEvent]:
    """Reasoning, text and calls in any order, between a start and an end."""
    events: list[AnswerEvent] = [STARTED]
    for number in range(draw(st.integers(0, 6))):
        kind = draw(st.sampled_from(["prefilled", "reasoning", "text", "text", "call"]))
        if kind == "prefilled":
            events.append(Prefilled(number))
        elif kind == "reasoning":
            events.append(Reasoning(draw(PIECES)))
        elif kind == "text":
            text = draw(PIECES)
            events.append(Text(text, (logprob(text),)))
        else:
            events += draw(calls(number))
    ends_with_call = isinstance(events[-1], CallEnded)
    return [*events, finished("tool_calls" if ends_with_call else draw(st.sampled_from(["stop", "length"])))]
