"""Completions of a text: what is asked of the engine, and what comes of its events."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.api.completions_answer import CompletionWriter
from orchestrator.api.completions_request import CompletionAsked, CompletionBody, completion_asked
from orchestrator.api.errors import ApiError
from orchestrator.api.fields import COMPLETIONS
from orchestrator.api.validated import validated
from orchestrator.serving.answer import Finished, Started, Text, Usage
from tests.orchestrator.api.scripted import STARTED, finished, logprob


def asked(**fields: Any) -> CompletionAsked:
    return completion_asked(validated({"model": "m", **fields}, COMPLETIONS, CompletionBody), "ann", 9)


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [("ab", ["ab"]), (["a", "b"], ["a", "b"]), ([1, 2], [(1, 2)]), ([[1], [2, 3]], [(1,), (2, 3)])],
)
def test_prompts_are_texts_or_tokens_one_or_several(prompt: Any, prompts: list[Any]) -> None:
    found = asked(prompt=prompt, n=2).requests
    assert [one.prompt for one in found] == [one for one in prompts for _ in range(2)]
    assert [one.choice for one in found] == [0, 1] * len(prompts)


def test_a_plain_request_has_sixteen_tokens_and_no_logprobs() -> None:
    (request,) = asked(prompt="a").requests
    assert request.max_tokens == 16
    assert request.top_logprobs is None
    assert asked(prompt="a", logprobs=0).requests[0].top_logprobs == 0


@pytest.mark.parametrize("prompt", ["", [], [[]], [""], [-1], [2**31], [1, "a"], None, ["a"] * 17])
def test_a_prompt_that_is_none_is_refused(prompt: Any) -> None:
    with pytest.raises(ApiError, match="prompt") as caught:
        asked(prompt=prompt)
    assert caught.value.status == 400


def test_offsets_of_logprobs_go_on_through_a_stream() -> None:
    made = CompletionWriter("x", 7, "m", 1, 1, with_logprobs=True, usage_at_end=False)
    chunks = made.take(0, Text("Hel", (logprob("Hel"),))) + made.take(0, Text("lo", (logprob("lo"),)))
    made.take(0, finished())
    streamed = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    whole = made.whole()["choices"][0]["logprobs"]
    assert whole["text_offset"] == [0, 3]
    for name, values in whole.items():
        assert values == [value for piece in streamed for value in piece[name]]
    assert whole["top_logprobs"][0] == {"Hel": -0.5, "other": -2.0}


def test_prompts_of_different_length_add_up_and_choices_of_one_do_not() -> None:
    made = CompletionWriter("x", 7, "m", 4, 2, with_logprobs=False, usage_at_end=True)
    for choice in range(4):
        tokens = 10 if choice < 2 else 100
        made.take(choice, Started(tokens, 0))
        made.take(choice, Text(str(choice)))
        made.take(choice, Finished("stop", Usage(tokens, 0, 3, 0)))
    whole = made.whole()
    assert [choice["text"] for choice in whole["choices"]] == ["0", "1", "2", "3"]
    assert whole["usage"]["prompt_tokens"] == 110
    assert whole["usage"]["completion_tokens"] == 12
    assert made.end()[0]["usage"] == whole["usage"]


def test_an_end_has_its_reason() -> None:
    made = CompletionWriter("x", 7, "m", 1, 1, with_logprobs=False, usage_at_end=False)
    made.take(0, STARTED)
    (chunk,) = made.take(0, finished("length"))
    assert chunk["choices"][0]["finish_reason"] == "length"
    assert made.end() == []
