"""Tokens become events: decoded, taken apart, searched, with probabilities where they belong."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as FastTokenizer

from orchestrator.answers.parsed import AnswerPart
from orchestrator.answers.parser import Parser, PlainParser, choose_parser
from orchestrator.answers.stream import AnswerStream
from orchestrator.answers.tagged_parser import TaggedParser
from orchestrator.serving.answer import (
    CallEnded,
    CallStarted,
    FinishReason,
    Reasoning,
    Text,
    TokenLogprob,
)
from orchestrator.tokenizer import Tokenizer
from tests.examples import examples
from tests.orchestrator.answers.tools import TOOLS, parse

MODEL = Path(__file__).parents[3] / "models" / "potluck-tiny"
CALL = "<tool_call>\n<function=read_file>\n<parameter=path>\na.py\n</parameter>\n</function>\n</tool_call>"


def load(special: bool) -> Tokenizer:
    """The shipped tokenizer, with its tags of reasoning and calls as special tokens or as ordinary ones."""
    description = json.loads((MODEL / "tokenizer.json").read_text())
    for token in description["added_tokens"]:
        token["special"] = token["special"] or special
    return Tokenizer(FastTokenizer.from_str(json.dumps(description)), None, {})


TOKENIZERS = {special: load(special) for special in (False, True)}
TOKENIZER = TOKENIZERS[True]


def logprobs_of(tokens: Sequence[int]) -> list[TokenLogprob]:
    """Each known by its place."""
    return [TokenLogprob(token, "", b"", -float(place)) for place, token in enumerate(tokens)]


def places(events: Sequence[AnswerPart]) -> list[int]:
    return [-int(one.logprob) for event in events if isinstance(event, Text) for one in event.logprobs]


def run(
    tokens: Sequence[int],
    parser: Parser,
    stop: Sequence[str] = (),
    reason: FinishReason = "stop",
    step: int = 1,
    tokenizer: Tokenizer = TOKENIZER,
) -> tuple[AnswerStream, list[AnswerPart]]:
    stream = AnswerStream(tokenizer, parser, stop)
    logprobs = logprobs_of(tokens)
    events: list[AnswerPart] = []
    for at in range(0, len(tokens), step):
        events += stream.push(tokens[at : at + step], logprobs[at : at + step])
    return stream, events + stream.finish(reason)


def texts(events: Sequence[AnswerPart]) -> tuple[str, str]:
    """Reasoning and text."""
    return (
        "".join(event.text for event in events if isinstance(event, Reasoning)),
        "".join(event.text for event in events if isinstance(event, Text)),
    )


@pytest.mark.parametrize("special", TOKENIZERS)
@pytest.mark.parametrize("step", [1, 3, 1000])
def test_tags_are_read_whether_they_are_special_tokens_or_not(special: bool, step: int) -> None:
    tokenizer = TOKENIZERS[special]
    tokens = tokenizer.encode(f"Hm 東京.\n</think>\nSee 🥘:\n{CALL}<|im_end|>")
    stream, events = run(tokens, TaggedParser(TOOLS), step=step, tokenizer=tokenizer)
    assert texts(events) == ("Hm 東京.", "See 🥘:")
    assert isinstance(events[-1], CallEnded)
    assert stream.num_calls == 1
    assert stream.reasoning_tokens == tokens.index(5) + 1


def test_a_model_without_reasoning_is_read_as_it_is() -> None:
    tokens = TOKENIZERS[False].encode("a</think>b\n<|im_end|>c")
    for template in (None, "{{ messages }}"):
        stream, events = run(tokens, choose_parser(template, ""), tokenizer=TOKENIZERS[False])
        assert texts(events) == ("", "a</think>b\nc")
        assert (stream.reasoning_tokens, stream.num_calls, stream.stop_text) == (0, 0, None)


PIECES = (
    "Hello ",
    "wörld",
    "東京",
    "🥘",
    "\n",
    "\n\n",
    "</think>",
    "<tool_call>",
    CALL,
    "<",
    "END",
    "EN",
    "<|im_end|>",
    "a  ",
)


@given(st.lists(st.sampled_from(PIECES), max_size=12), st.integers(1, 9), st.booleans())
@examples(80)
def test_events_are_the_parser_s_whatever_comes_at_once(pieces: list[str], step: int, special: bool) -> None:
    text = "".join(pieces)
    tokenizer = TOKENIZERS[special]
    tokens = tokenizer.encode(text)
    stream, events = run(tokens, TaggedParser(TOOLS), step=step, tokenizer=tokenizer)
    expected = parse(text.replace("<|im_end|>", ""))
    assert texts(events) == texts(expected)
    for kind in (CallStarted, CallEnded):
        assert [one for one in events if isinstance(one, kind)] == [
            one for one in expected if isinstance(one, kind)
        ]
    assert stream.num_calls == sum(isinstance(event, CallStarted) for event in events)
    found = places(events)
    assert found == sorted(set(found))


@given(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd"), max_size=30),
    st.integers(1, 5),
)
def test_every_token_of_a_plain_text_has_its_probability_once(text: str, step: int) -> None:
    tokens = TOKENIZER.encode(text.replace("<", ""))
    _, events = run(tokens, PlainParser(), ["\x00\x00"], step=step)
    if "\x00\x00" not in text:
        assert places(events) == list(range(len(tokens)))


def test_probabilities_stay_with_the_answer_s_text() -> None:
    parts = ["Thinking about it.\n", "</think>", "\n", "Hello there", "\n\n", CALL, "\n", "Done"]
    tokens: list[int] = []
    expected = []
    for part in parts:
        encoded = TOKENIZER.encode(part)
        if part in ("Hello there", "Done"):
            expected += range(len(tokens), len(tokens) + len(encoded))
        tokens += encoded
    _, events = run(tokens, TaggedParser(TOOLS))
    assert texts(events)[1] == "Hello there\nDone"
    # The line break in front of Done is text too.
    assert places(events) == sorted([*expected, expected[-1] - len(TOKENIZER.encode("Done"))])


def test_probabilities_of_reasoning_are_not_kept() -> None:
    stream = AnswerStream(TOKENIZER, TaggedParser(TOOLS))
    tokens = TOKENIZER.encode("Let me think about this.\n" * 200)
    stream.push(tokens, logprobs_of(tokens))
    assert len(stream._written) < 10


def test_without_probabilities_texts_have_none() -> None:
    stream = AnswerStream(TOKENIZER, PlainParser())
    assert stream.push(TOKENIZER.encode("Hello")) == [Text("Hello")]
    assert stream.finish("stop") == []


@pytest.mark.parametrize("step", [1, 4, 1000])
def test_a_stop_text_ends_the_answer_but_not_reasoning_or_calls(step: int) -> None:
    text = f"a.py and END\n</think>\n{CALL}One END"
    tokens = TOKENIZER.encode(f"{text} two END{CALL}")
    stream, events = run(tokens, TaggedParser(TOOLS), ["a.py", " END"], step=step)
    assert texts(events) == ("a.py and END", "One")
    assert stream.stop_text == " END"
    assert stream.num_calls == 1
    assert stream.push(tokens) == []
    assert max(places(events)) < len(TOKENIZER.encode(text))


def test_what_might_have_become_a_stop_text_is_sent_before_a_call_and_at_the_end() -> None:
    tokens = TOKENIZER.encode(f"</think>\nthe E{CALL}the EN")
    stream, events = run(tokens, TaggedParser(TOOLS), ["END"])
    start = next(number for number, event in enumerate(events) if isinstance(event, CallStarted))
    assert texts(events[:start]) == ("", "the E")
    assert texts(events[start:]) == ("", "the EN")
    assert stream.stop_text is None


def test_bytes_that_are_no_character_do_not_wait_for_ever() -> None:
    byte = TOKENIZER.encode("🥘")[0]
    stream = AnswerStream(TOKENIZER, PlainParser())
    events = stream.push([byte] * 50)
    assert len(texts(events)[1]) >= 40
    assert set(texts(events + stream.finish("length"))[1]) == {"\ufffd"}


@pytest.mark.parametrize(
    ("reason", "ends"),
    [("stop", True), ("tool_calls", True), ("length", False), ("loop", False), ("lost", False)],
)
def test_only_the_model_s_own_end_completes_a_call(reason: FinishReason, ends: bool) -> None:
    tokens = TOKENIZER.encode(f"</think>\n{CALL[: CALL.index('.py') + 3]}")
    _, events = run(tokens, TaggedParser(TOOLS), reason=reason)
    assert any(isinstance(event, CallEnded) for event in events) is ends
