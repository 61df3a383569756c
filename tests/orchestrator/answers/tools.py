"""Tools that the tests of this folder call, and events put together."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from orchestrator.answers.parsed import AnswerPart, Parsed
from orchestrator.answers.tagged_parser import TaggedParser
from orchestrator.serving.answer import CallArguments, CallEnded, CallStarted, Reasoning, Text


def tool(name: str, **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


TEXT = {"type": "string"}
TOOLS = (
    tool("read_file", path=TEXT, limit={"type": "integer"}),
    tool("write_file", path=TEXT, content=TEXT, mode={"type": "string", "enum": ["w", "a"]}),
    tool(
        "search", query={"anyOf": [TEXT, {"type": "null"}]}, deep={"type": "boolean"}, tags={"type": "array"}
    ),
    tool("now"),
)


def together(events: Iterable[AnswerPart]) -> list[AnswerPart]:
    """The same events with pieces of one kind put together."""
    found: list[AnswerPart] = []
    for event in events:
        last = found[-1] if found else None
        if isinstance(event, Reasoning | Text | CallArguments) and type(last) is type(event):
            assert isinstance(last, Reasoning | Text | CallArguments)
            found[-1] = replace(last, text=last.text + event.text)
        else:
            found.append(event)
    return found


def parse_pieces(
    pieces: Sequence[str], tools: Sequence[dict[str, Any]] = TOOLS, *, inside: bool = True, cut: bool = False
) -> list[Parsed]:
    parser = TaggedParser(tools, inside=inside)
    parsed = [one for piece in pieces for one in parser.push(piece)]
    return parsed + parser.finish(cut=cut)


def parse(
    text: str, tools: Sequence[dict[str, Any]] = TOOLS, *, inside: bool = True, cut: bool = False
) -> list[AnswerPart]:
    """The events of a text, which are the same in one piece and character by character."""
    whole, single = (
        together(one.event for one in parse_pieces(pieces, tools, inside=inside, cut=cut))
        for pieces in ([text], list(text))
    )
    assert whole == single
    return whole


def answer(text: str, tools: Sequence[dict[str, Any]] = TOOLS) -> tuple[str, list[tuple[str, Any]]]:
    """Text and calls of an answer without reasoning. Every call's JSON text says what its end says."""
    events = parse(f"</think>\n{text}", tools)
    texts, calls, json_text, name = "", [], "", ""
    for event in events:
        if isinstance(event, Text):
            texts += event.text
        elif isinstance(event, CallStarted):
            name, json_text = event.name, ""
        elif isinstance(event, CallArguments):
            json_text += event.text
        elif isinstance(event, CallEnded):
            assert json.loads(json_text) == event.arguments
            calls.append((name, dict(event.arguments)))
    return texts, calls
