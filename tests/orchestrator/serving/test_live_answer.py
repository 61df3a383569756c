"""What becomes of an answer's tokens, one after another, however many come at once."""

from __future__ import annotations

from random import Random

import pytest

from orchestrator.serving.answer import CallEnded, Reasoning, Text
from orchestrator.serving.live_answer import LiveAnswer
from orchestrator.serving.prompts import Prompts
from orchestrator.serving.request import GenerationRequest
from orchestrator.tokenizer import Tokenizer
from tests.orchestrator.serving.served import MODEL, TOOLS, chatting

END = 3


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(MODEL)


def live(tokenizer: Tokenizer, request: GenerationRequest) -> LiveAnswer:
    prompts = Prompts(tokenizer, 4096, (END,))
    return LiveAnswer(request, prompts.of(request, "call_"), tokenizer, prompts.budget_tokens)


def told(answer: LiveAnswer, tokens: list[int], luck: Random) -> list[object]:
    """Everything that is said of tokens which come in pieces, and what was to be done about them."""
    found: list[object] = []
    place = 0
    while place < len(tokens):
        piece = tokens[place : place + luck.randint(1, 4)]
        is_last = place + len(piece) == len(tokens)
        verdict = answer.take(piece, "stop" if is_last else None)
        place += verdict.kept
        if verdict.forced or verdict.banned is not None or verdict.ended:
            found.append((place, verdict.forced, verdict.banned, verdict.ended))
        if verdict.forced:
            answer.take(verdict.forced, None)
        if verdict.ended is not None:
            found += [(answer.stop_text, answer.num_tokens, answer.reasoning_tokens)]
            return [*found, *answer.finish(verdict.ended)]
    raise AssertionError("the answer does not end")


REPEATED = "So it goes round and round. "
CALL = "</think>\n<tool_call>\n<function=look>\n<parameter=place>\nhere\n</parameter>\n</function>\n"
CALL += "</tool_call>\n"
TEXTS = {
    "plain": ("A thought.\n</think>\nAn answer that is long enough.<|im_end|>", {}),
    "stop": ("A thought.\n</think>\nAn answer STOP and more<|im_end|>", {"stop": ("STOP",)}),
    "budget": ("One. " * 60 + "</think>\nAn answer.<|im_end|>", {"reasoning_tokens": 40}),
    "calls": (CALL + CALL.removeprefix("</think>\n") + "<|im_end|>", {"tools": TOOLS}),
    "one call": (
        CALL + CALL.removeprefix("</think>\n") + "<|im_end|>",
        {"tools": TOOLS, "parallel_tool_calls": False},
    ),
    "loop": ("Well.\n</think>\n" + REPEATED * 700 + "<|im_end|>", {}),
    "loop in reasoning": (REPEATED * 300 + "</think>\nEnough.<|im_end|>", {}),
}


@pytest.mark.parametrize("name", TEXTS)
def test_an_answer_does_not_depend_on_how_many_tokens_come_at_once(tokenizer: Tokenizer, name: str) -> None:
    text, settings = TEXTS[name]
    tokens = tokenizer.encode(text)
    one_by_one = told(live(tokenizer, chatting("Hi", **settings)), tokens, Random("1"))

    def joined(found: list[object]) -> tuple[list[object], str, str]:
        said = [one for one in found if not isinstance(one, Text | Reasoning)]
        texts = "".join(one.text for one in found if isinstance(one, Text))
        return said, "".join(one.text for one in found if isinstance(one, Reasoning)), texts

    for seed in range(4):
        again = told(live(tokenizer, chatting("Hi", **settings)), tokens, Random(seed))
        assert joined(again) == joined(one_by_one)


def test_reasoning_beyond_its_budget_is_ended(tokenizer: Tokenizer) -> None:
    text, settings = TEXTS["budget"]
    answer = live(tokenizer, chatting("Hi", **settings))
    found = told(answer, tokenizer.encode(text), Random(1))
    assert isinstance(found[0], tuple)
    place, forced, _, _ = found[0]
    assert place == 40
    assert tokenizer.decode(forced, skip_special=False).strip() == "</think>"
    assert 40 < answer.reasoning_tokens <= 40 + len(forced)


def test_a_text_that_goes_round_is_broken_and_then_stopped(tokenizer: Tokenizer) -> None:
    answer = live(tokenizer, chatting("Hi"))
    found = told(answer, tokenizer.encode(TEXTS["loop"][0]), Random(1))
    breaks = [one for one in found if isinstance(one, tuple) and len(one) == 4 and one[2] is not None]
    assert len(breaks) == 2
    ends = [one[3] for one in found if isinstance(one, tuple) and len(one) == 4 and one[3]]
    assert ends == ["loop"]
    # The looping text is kept for nobody.
    assert answer.worth_keeping < 40


def test_reasoning_that_goes_round_is_ended(tokenizer: Tokenizer) -> None:
    found = told(live(tokenizer, chatting("Hi")), tokenizer.encode(TEXTS["loop in reasoning"][0]), Random(1))
    forced = [one[1] for one in found if isinstance(one, tuple) and len(one) == 4 and one[1]]
    assert len(forced) == 1
    assert "</think>" in tokenizer.decode(forced[0], skip_special=False)


def test_a_second_call_comes_only_where_it_may(tokenizer: Tokenizer) -> None:
    for name, calls, reason in (("calls", 2, "tool_calls"), ("one call", 1, "tool_calls")):
        text, settings = TEXTS[name]
        found = told(live(tokenizer, chatting("Hi", **settings)), tokenizer.encode(text), Random(1))
        assert sum(isinstance(one, CallEnded) for one in found) == calls
        assert [one[3] for one in found if isinstance(one, tuple) and len(one) == 4 and one[3]] == [reason]
