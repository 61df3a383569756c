"""Calls held to their tools' schemas and grammars, whatever the model would write."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from orchestrator.sampling_params import SamplingParams
from orchestrator.serving.answer import AnswerEvent, CallEnded, CallStarted
from orchestrator.serving.live_answer import LiveAnswer
from orchestrator.serving.prompts import Prompt, Prompts
from orchestrator.serving.request import Conversation, GenerationRequest, OutputForm
from orchestrator.tokenizer import Tokenizer
from tests.orchestrator.serving.served import MODEL, Served, load, shown

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
IS_PATCH = re.compile(r"\*\*\* Begin\n([+-][a-z ]{0,9}\n)+\*\*\* End")
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


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(MODEL)


@pytest.fixture(scope="module")
def prompts(tokenizer: Tokenizer) -> Prompts:
    return Prompts(tokenizer, VOCAB, (END,))


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


def written(
    tokenizer: Tokenizer, prompt: Prompt, request: GenerationRequest, budget: Any, seed: int, depth: int
) -> tuple[list[int], list[AnswerEvent], str]:
    """What such a model answers if so many drafts are verified at once, half of them wrong."""
    writer, answer = Writer(tokenizer, seed), LiveAnswer(request, prompt, tokenizer, budget)
    tokens: list[int] = []
    while len(tokens) < 400:
        drafts: list[int] = []
        for place in range(depth):
            drafts.append(writer.choose([*tokens, *drafts], None) if (len(tokens) + place) % 2 else 7)
        rows = list(prompt.allowed(drafts)) if prompt.is_bound else []
        chosen: list[int] = []
        for place in range(depth + 1):
            chosen.append(writer.choose([*tokens, *chosen], rows[place] if rows else None))
            if chosen[-1] == END or chosen[-1] != (*drafts, None)[place]:
                break
        verdict = answer.take(chosen, "stop" if chosen[-1] == END else None)
        tokens += chosen[: verdict.kept]
        while verdict.forced:
            tokens += verdict.forced
            verdict = answer.take(verdict.forced, None)
        if verdict.ended is not None:
            return tokens, [*answer.events(), *answer.finish(verdict.ended)], verdict.ended
    return tokens, [*answer.events(), *answer.finish("length")], "length"


def fits(call: str, arguments: Mapping[str, Any]) -> bool:
    if call == "patch":
        return list(arguments) == ["input"] and bool(IS_PATCH.fullmatch(arguments["input"]))
    if call == "when":
        return list(arguments) == ["input"] and bool(re.fullmatch("[0-9]{2}:[0-9]{2}", arguments["input"]))
    checks: dict[str, Callable[[Any], bool]] = {
        "path": lambda value: isinstance(value, str),
        "count": lambda value: type(value) is int,
        "ratio": lambda value: value is None or type(value) in (int, float),
        "mode": lambda value: value in ("read", "write it", 7),
        "spans": lambda value: (
            isinstance(value, list)
            and len(value) <= 2
            and all(list(span) == ["to"] and type(span["to"]) is int for span in value)
        ),
        "sure": lambda value: isinstance(value, bool),
    }
    return {"path", "count", "mode"} <= arguments.keys() <= checks.keys() and all(
        checks[key](value) for key, value in arguments.items()
    )


def calls_of(events: Sequence[AnswerEvent]) -> list[tuple[str, dict[str, Any]]]:
    names = {event.call_id: event.name for event in events if isinstance(event, CallStarted)}
    return [(names[e.call_id], dict(e.arguments)) for e in events if isinstance(e, CallEnded)]


def test_calls_fit_their_tools_whatever_the_model_would_write(tokenizer: Tokenizer, prompts: Prompts) -> None:
    seen: dict[str, int] = {}
    for seed in range(40):
        request = asking(choice=CHOICES[seed % len(CHOICES)])
        prompt = prompts.of(request, "call_")
        _, events, reason = written(tokenizer, prompt, request, prompts.budget_tokens, seed, 0)
        for name, arguments in calls_of(events):
            seen[name] = seen.get(name, 0) + 1
            assert name == "edit_freely" or fits(name, arguments), (seed, name, arguments)
        if reason != "length":
            ended = [event.call_id for event in events if isinstance(event, CallEnded)]
            assert ended == [event.call_id for event in events if isinstance(event, CallStarted)]
    assert min(seen.get(name, 0) for name in ("edit", "patch", "when", "edit_freely")) > 0, seen


def test_without_the_hold_the_same_model_would_break_them(tokenizer: Tokenizer, prompts: Prompts) -> None:
    free = [tool("edit", SCHEMA), *TOOLS[1:]]
    broken = set()
    for seed in range(15):
        request = asking(free, {}, CHOICES[seed % len(CHOICES)])
        prompt = prompts.of(request, "call_")
        assert prompt.held is None
        _, events, _ = written(tokenizer, prompt, request, prompts.budget_tokens, seed, 0)
        broken |= {name for name, arguments in calls_of(events) if not fits(name, arguments)}
    assert {"edit", "patch"} <= broken


def test_drafts_change_nothing(tokenizer: Tokenizer, prompts: Prompts) -> None:
    for seed in range(15):
        found = []
        for depth in (0, 1, 3):
            request = asking(choice=CHOICES[seed % len(CHOICES)])
            prompt = prompts.of(request, "call_")
            tokens, events, reason = written(tokenizer, prompt, request, prompts.budget_tokens, seed, depth)
            found.append((tokens[:380], calls_of(events), reason))
        assert found[0] == found[1] == found[2]


def test_the_shipped_models_calls_fit_with_and_without_drafts() -> None:
    model = load()
    requests = [
        asking(choice=choice, sampling=SamplingParams(1.3 * (place % 2), seed=3), max_tokens=100)
        for place, choice in enumerate(("edit", "patch", "when", "required", "auto"))
    ]
    found, accepted = [], []
    for mtp in (0, 3):
        served = Served(model, mtp=mtp)
        answers = [answer for request in requests for answer in served.run(request)]
        called = [call for answer in answers for call in calls_of(answer.events)]
        assert all(name == "edit_freely" or fits(name, arguments) for name, arguments in called)
        found.append((called, shown(answers), [answer.arguments for answer in answers]))
        accepted.append(sum(answer.end.usage.accepted for answer in answers if answer.end))
        served.close()
    assert found[0] == found[1]
    assert {"patch", "when"} <= {name for name, _ in called}
    assert accepted[0] == 0 < accepted[1]


def test_no_mask_is_made_in_text_in_other_calls_and_in_arguments_that_are_texts(
    tokenizer: Tokenizer, prompts: Prompts
) -> None:
    request = asking()
    prompt = prompts.of(request, "call_")
    answer = LiveAnswer(request, prompt, tokenizer, prompts.budget_tokens)

    def is_free(text: str) -> bool:
        """Whether any token may come behind each token of this text."""
        free = []
        for token_id in tokenizer.encode(text):
            assert answer.take([token_id], None).kept == 1
            free += [row is None for row in prompt.allowed([7, 8])]
        return all(free)

    assert is_free("Some text, `<tool_call>` and <function in it.\n")
    assert not is_free("<tool_call>\n<function=edit_freely>")
    assert is_free("\n<parameter=count>\nmany\n</parameter>\n</function>\n</tool_call>\n")
    assert not is_free("<tool_call>\n<function=edit>\n<parameter=path>")
    assert is_free("\na < b\n<parameter>\n<function=x>\n</functions>\n</paramet")
    assert not is_free("er>\n<parameter=count>\n1")
    assert not is_free("\n</parameter>\n<parameter=mode>\nread\n</parameter>\n</function>")
    assert is_free("\n</tool_call>\nDone.")
