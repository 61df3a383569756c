"""Calls held to their tools' schemas and grammars, whatever the model would write."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from orchestrator.sampling_params import SamplingParams
from orchestrator.serving.answer import CallEnded, CallStarted
from orchestrator.serving.live_answer import LiveAnswer
from orchestrator.serving.prompts import Prompts
from orchestrator.tokenizer import Tokenizer
from tests.orchestrator.serving.calling import (
    CHOICES,
    END,
    SCHEMA,
    TOOLS,
    VOCAB,
    asking,
    calls_of,
    tool,
    written,
)
from tests.orchestrator.serving.served import MODEL, Served, load, shown

IS_PATCH = re.compile(r"\*\*\* Begin\n([+-][a-z ]{0,9}\n)+\*\*\* End")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(MODEL)


@pytest.fixture(scope="module")
def prompts(tokenizer: Tokenizer) -> Prompts:
    return Prompts(tokenizer, VOCAB, (END,))


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


def test_calls_fit_their_tools_whatever_the_model_would_write(tokenizer: Tokenizer, prompts: Prompts) -> None:
    seen: dict[str, int] = {}
    for seed in range(40):
        request = asking(choice=CHOICES[seed % len(CHOICES)])
        answer = written(tokenizer, prompts, request, seed, 0)
        for name, arguments in calls_of(answer.events):
            seen[name] = seen.get(name, 0) + 1
            assert name == "edit_freely" or fits(name, arguments), (seed, name, arguments)
        if answer.reason != "length":
            ended = [event.call_id for event in answer.events if isinstance(event, CallEnded)]
            assert ended == [event.call_id for event in answer.events if isinstance(event, CallStarted)]
    assert min(seen.get(name, 0) for name in ("edit", "patch", "when", "edit_freely")) > 0, seen


def test_without_the_hold_the_same_model_would_break_them(tokenizer: Tokenizer, prompts: Prompts) -> None:
    free = [tool("edit", SCHEMA), *TOOLS[1:]]
    broken = set()
    for seed in range(15):
        request = asking(free, {}, CHOICES[seed % len(CHOICES)])
        assert prompts.of(request, "call_").held is None
        answer = written(tokenizer, prompts, request, seed, 0)
        broken |= {name for name, arguments in calls_of(answer.events) if not fits(name, arguments)}
    assert {"edit", "patch"} <= broken


def test_drafts_change_nothing(tokenizer: Tokenizer, prompts: Prompts) -> None:
    for seed in range(15):
        found = []
        for depth in (0, 1, 3):
            request = asking(choice=CHOICES[seed % len(CHOICES)])
            answer = written(tokenizer, prompts, request, seed, depth)
            found.append((answer.tokens[:380], calls_of(answer.events), answer.reason))
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
