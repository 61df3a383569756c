"""Requests with tools, and a model that writes calls by lot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.serving.answer import AnswerEvent, CallEnded, CallStarted
from orchestrator.serving.live_answer import LiveAnswer
from orchestrator.serving.prompts import Prompts
from orchestrator.serving.request import Conversation, GenerationRequest, OutputForm
from orchestrator.tokenizer import Tokenizer

END, VOCAB = 3, 4096
SCHEMA = {
    "type": "object",
    "properties": {
        "path": {"type": "string", "description": "a file"},
        "count": {"type": "integer"},
        "ratio": {"type": ["number", "null"]},
        "mode": {"enum": ["read", "write it", 7]},
        "spans": {"type": "array", "items": {"$ref": "#/$defs/span"}, "maxItems": 2},
        "sure": {"type": "boolean"},
    },
    "$defs": {
        "span": {
            "type": "object",
            "properties": {"to": {"type": "integer"}},
            "required": ["to"],
            "additionalProperties": False,
        }
    },
    "required": ["path", "count", "mode"],
    "additionalProperties": False,
}
PATCH = """start: begin line+ end
begin: "*** Begin" LF
line: ("+" | "-") /[a-z ]{0,9}/ LF
end: "*** End"
%import common.LF
"""
INPUT = {"type": "object", "properties": {"input": {"type": "string"}}, "required": ["input"]}
INPUTS = {"patch": OutputForm("grammar", PATCH), "when": OutputForm("regex", r"^[0-9]{2}:[0-9]{2}$")}


def tool(name: str, parameters: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters, **more}}


TOOLS = (
    tool("edit", SCHEMA, strict=True),
    tool("patch", INPUT),
    tool("when", INPUT),
    tool("edit_freely", SCHEMA),
)
# What a model that goes wrong would write.
SNIPPETS = (
    "<tool_call>\n<function=edit>\n<parameter=path>\na.py\n</parameter>\n",
    "<tool_call>\n<function=patch>\n<parameter=input>\n*** Begin\n+a\n*** End\n</parameter>\n</function>\n",
    "<tool_call>\n<function=patch>\n<parameter=input>\nno patch\n</parameter>\n</function>\n</tool_call>",
    "<tool_call>\n<function=when>\n<parameter=input>\n12:",
    "\n<function=edit>\n<parameter=count>\nmany\n</parameter>\n</function>",
    "<function edit\n</function>",
    "<tool_call>\n<function=edit_freely>\n<parameter=count>\nmany\n</parameter>\n</function>\n</tool_call>",
    "\n</parameter>\n",
    "\n</parameter>\n<parameter=mode>\nread\n</parameter>",
    "\n</parameter>\n<b>",
    "\n</parameter>\n. And so on",
    "</function>\n</tool_call>",
    "\n<parameter=nobody>\n",
    "\n<parameter=count>\n12\n</parameter>\n",
    "\n<function=edit>\n</function>\n</tool_call>\n",
    "</think>\nSome text.\n",
    "7",
    "}\n",
)

CHOICES = ("auto", "edit", "patch", "when", "required")


def asking(
    tools: Sequence[Mapping[str, Any]] = TOOLS,
    inputs: Mapping[str, OutputForm] | None = None,
    choice: str = "auto",
    **settings: Any,
) -> GenerationRequest:
    bound = INPUTS if inputs is None else inputs
    chat = Conversation(({"role": "user", "content": "Hi"},), tuple(tools), choice, True, bound)
    settings.setdefault("reasoning_tokens", 0)
    return GenerationRequest("me", chat, **settings)


class Writer:
    """A model that writes pieces of calls by lot. What it chooses depends on the text before and the mask."""

    def __init__(self, tokenizer: Tokenizer, seed: int) -> None:
        self._seed = seed
        self._firsts: list[int] = []
        self._next: dict[tuple[int, ...], list[int]] = {}
        for snippet in SNIPPETS:
            token_ids = tokenizer.encode(snippet)
            self._firsts.append(token_ids[0])
            for length in range(1, len(token_ids)):
                behind = tuple(token_ids[max(0, length - 3) : length])
                self._next.setdefault(behind, []).append(token_ids[length])

    def choose(self, before: Sequence[int], allowed: NDArray[np.uint32] | None) -> int:
        luck = Random(f"{self._seed} {len(before)} {before[-4:]}")
        ends = (tuple(before[len(before) - length :]) for length in (3, 2, 1) if len(before) >= length)
        going_on = next((self._next[end] for end in ends if end in self._next), [])
        wishes = [luck.choice(going_on)] if going_on and luck.random() < 0.9 else []
        wishes += [luck.choice(self._firsts), END][: 1 + (luck.random() < 0.2)]
        if luck.random() < 0.1:
            wishes.reverse()
        for wish in wishes:
            if allowed is None or allowed[wish // 32] >> np.uint32(wish % 32) & 1:
                return wish
        bits = np.unpackbits(allowed.view(np.uint8), bitorder="little")
        return int(luck.choice(np.flatnonzero(bits)))


@dataclass(frozen=True, slots=True)
class Written:
    """What such a model answered, why it ended, and how many of its drafts held."""

    tokens: list[int]
    events: list[AnswerEvent]
    reason: str
    held: int


def written(
    tokenizer: Tokenizer,
    prompts: Prompts,
    request: GenerationRequest,
    seed: int,
    depth: int,
    *,
    fitting: bool = False,
) -> Written:
    """An answer of which so many drafts are verified at once: those that fit, or else half of them wrong."""
    prompt = prompts.of(request, "call_")
    writer, answer = Writer(tokenizer, seed), LiveAnswer(request, prompt, tokenizer, prompts.budget_tokens)
    tokens: list[int] = []
    held = 0
    while len(tokens) < 400:
        drafts: list[int] = []
        for place in range(depth):
            allowed = (list(prompt.allowed(drafts)) or [None])[-1] if fitting else None
            is_wrong = not fitting and (len(tokens) + place) % 2 == 0
            drafts.append(7 if is_wrong else writer.choose([*tokens, *drafts], allowed))
        rows = list(prompt.allowed(drafts)) if prompt.is_bound else []
        chosen: list[int] = []
        for place in range(depth + 1):
            chosen.append(writer.choose([*tokens, *chosen], rows[place] if rows else None))
            if chosen[-1] == END or chosen[-1] != (*drafts, None)[place]:
                break
        verdict = answer.take(chosen, "stop" if chosen[-1] == END else None)
        tokens += chosen[: verdict.kept]
        held += verdict.kept - 1
        while verdict.forced:
            tokens += verdict.forced
            verdict = answer.take(verdict.forced, None)
        if verdict.ended is not None:
            events = [*answer.events(), *answer.finish(verdict.ended)]
            return Written(tokens, events, verdict.ended, held)
    return Written(tokens, [*answer.events(), *answer.finish("length")], "length", held)


def calls_of(events: Sequence[AnswerEvent]) -> list[tuple[str, dict[str, Any]]]:
    names = {event.call_id: event.name for event in events if isinstance(event, CallStarted)}
    return [(names[e.call_id], dict(e.arguments)) for e in events if isinstance(e, CallEnded)]
