"""A model's text taken apart: reasoning, text and calls, well formed and not, however the text is cut."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.answers.parsed import AnswerPart
from orchestrator.answers.parser import PlainParser, choose_parser
from orchestrator.answers.tagged_parser import TaggedParser
from orchestrator.serving.answer import CallArguments, CallEnded, CallStarted, Reasoning, Text
from tests.examples import examples
from tests.orchestrator.answers.tools import TOOLS, answer, parse, parse_pieces, together, tool

READ = "<function=read_file>\n<parameter=path>\na.py\n</parameter>\n</function>"
CALL = f"<tool_call>\n{READ}\n</tool_call>"
READ_A = ("read_file", {"path": "a.py"})


def split(text: str, tools: Any = TOOLS, inside: bool = True) -> tuple[str, str]:
    """Reasoning and text."""
    events = parse(text, tools, inside=inside)
    reasoning = "".join(event.text for event in events if isinstance(event, Reasoning))
    return reasoning, "".join(event.text for event in events if isinstance(event, Text))


@pytest.mark.parametrize(
    ("text", "reasoning", "answered"),
    [
        ("I think.\n</think>\nHello.", "I think.", "Hello."),
        ("I think.</think>Hello.", "I think.", "Hello."),
        ("\nI think.\n\n</think>\n\nHello.\n", "I think.\n", "\nHello.\n"),
        ("</think>Hello", "", "Hello"),
        ("\n</think>\n", "", ""),
        ("<think>\nTwice opened.\n</think>\nHello", "Twice opened.", "Hello"),
        ("a < b, <b>\n</th\n</think>\nx", "a < b, <b>\n</th", "x"),
        ("Never ends\n", "Never ends", ""),
        ("Breaks off </thi", "Breaks off </thi", ""),
        ("", "", ""),
    ],
)
def test_reasoning_ends_where_its_tag_says(text: str, reasoning: str, answered: str) -> None:
    assert split(text) == (reasoning, answered)


def test_a_line_break_at_the_end_of_reasoning_is_held_back() -> None:
    parser = TaggedParser()
    assert [one.event for one in parser.push("I think.\n")] == [Reasoning("I think.")]
    assert parser.in_reasoning
    assert [one.event for one in parser.push("More.")] == [Reasoning("\nMore.")]
    assert parser.push("\n</thi") == []
    assert [one.event for one in parser.push("nk>\nHi")] == [Text("Hi")]
    assert not parser.in_reasoning


def test_text_that_cannot_become_a_tag_is_not_held_back() -> None:
    parser = TaggedParser(TOOLS)
    parser.push("</think>\n")
    sent = "".join(
        one.event.text for one in parser.push("if a < b and c <d> e") if isinstance(one.event, Text)
    )
    assert sent == "if a < b and c <d> e"


def test_a_call_ends_reasoning_that_was_not_ended() -> None:
    assert parse(f"I should read it.\n{CALL}") == [
        Reasoning("I should read it."),
        CallStarted("call_0", "read_file"),
        CallArguments("call_0", '{"path": "a.py"}'),
        CallEnded("call_0", {"path": "a.py"}),
    ]


def test_reasoning_may_speak_of_calls() -> None:
    text = "I must write <tool_call> first, as in `<function=read_file>`.\n</think>\nYes."
    assert split(text) == (text.partition("\n")[0], "Yes.")
    assert split(f"{CALL}\n</think>\nYes.", tools=()) == (CALL, "Yes.")


def test_a_call_of_an_unknown_tool_ends_reasoning_and_is_text() -> None:
    unknown = CALL.replace("read_file", "no_such_tool")
    assert split(f"I call.\n{unknown}") == ("I call.", unknown)


@pytest.mark.parametrize(
    "stray", ["He</think>llo", "Hello</think>", "</think>Hello", "Hel</think></think>lo"]
)
def test_later_ends_of_reasoning_are_removed(stray: str) -> None:
    assert split(f"x</think>\n{stray}") == ("x", "Hello")


def test_an_answer_may_begin_outside_reasoning() -> None:
    assert split("Hello", inside=False) == ("", "Hello")
    assert split("\n<think>\nHm.\n</think>\nHello", inside=False) == ("Hm.", "Hello")


def test_several_calls_and_text_around_them() -> None:
    text, calls = answer(
        f"First.\n\n{CALL}\n{CALL.replace('a.py', 'b.py')}\n<tool_call>\n<function=now>\n</function>"
    )
    assert text == "First."
    assert calls == [READ_A, ("read_file", {"path": "b.py"}), ("now", {})]
    assert answer(f"{CALL}\n\nDone.\n") == ("\n\nDone.\n", [READ_A])
    assert answer(f"  \n{CALL}\n") == ("", [READ_A])


def test_ids_of_calls_differ() -> None:
    events = parse(f"</think>{CALL}{CALL}")
    ids = [event.call_id for event in events if isinstance(event, CallStarted)]
    assert len(set(ids)) == 2


@pytest.mark.parametrize(
    "call",
    [
        CALL.replace("<function=read_file>", "<function read_file>"),
        CALL.replace("<function=read_file>", '<function="read_file">'),
        CALL.replace("<function=read_file>", '<function name="read_file">'),
        CALL.replace("<function=read_file>", "<function=function=read_file>"),
        CALL.replace("<function=read_file>", "<function=read_file"),
        CALL.replace("<function=read_file>\n", "<function=read_file"),
        CALL.replace("<parameter=path>", "<parameter=path"),
        CALL.replace("<parameter=path>\n", "<parameter=path "),
        CALL.replace("<parameter=path>", "<parameter path>"),
        CALL.replace("<parameter=path>", '<parameter name="path">'),
        CALL.replace("<parameter=path>", "<parameter=parameter=path>"),
        CALL.replace("</parameter>\n", ""),
        CALL.replace("</parameter>", "</parameter"),
        CALL.replace("</parameter>", "</parameter>\n</parameter>"),
        CALL.replace("</function>\n", ""),
        CALL.replace("</function>", "</function"),
        CALL.replace("\n</tool_call>", ""),
        CALL.replace("</function>\n</tool_call>", ""),
        CALL.replace("</parameter>\n</function>\n</tool_call>", ""),
        CALL.replace("</parameter>\n</function>\n</tool_call>", "</param"),
        CALL.replace("\n</parameter>\n</function>\n</tool_call>", ""),
        CALL.replace("</tool_call>", "</tool_"),
        CALL.replace("</tool_call>", "</tool_call>\n</tool_call>"),
        CALL.replace("<tool_call>", "<tool_call>\n<tool_call>"),
        CALL.replace("\n", ""),
        CALL.replace("\n", "\n\n  ").replace("\n\n  a.py\n\n  ", "\na.py\n"),
        READ,
        f"  {READ}",
        f"{READ}\n</tool_call>",
    ],
)
def test_a_malformed_call_of_a_known_tool_is_repaired(call: str) -> None:
    assert answer(call) == ("", [READ_A])
    assert answer(f"Text\n{call}") == ("Text", [READ_A])


def test_arguments_without_their_ends() -> None:
    call = (
        "<tool_call>\n<function=write_file>\n<parameter=path>\na\n<parameter=content>\nx <parameter=mode> y\n"
        "<parameter=mode>w</function></tool_call>"
    )
    arguments = {"path": "a", "content": "x <parameter=mode> y", "mode": "w"}
    assert answer(call) == ("", [("write_file", arguments)])


def test_a_call_that_never_closes_ends_before_the_next_one() -> None:
    first = "<tool_call>\n<function=now>\n"
    assert answer(first + CALL) == ("", [("now", {}), READ_A])
    assert answer(CALL.replace("</function>\n</tool_call>", "") + CALL) == ("", [READ_A, READ_A])


def test_text_within_a_call_ends_it() -> None:
    assert answer("<tool_call>\n<function=now>\nand so on") == ("and so on", [("now", {})])


@pytest.mark.parametrize(
    "text",
    [
        CALL.replace("read_file", "no_such_tool"),
        CALL.replace("read_file", "read_file_2"),
        READ.replace("read_file", "read"),
        "<tool_call>",
        "<tool_call>\n{}\n</tool_call>",
        "Use `<function=read_file>\n<parameter=path>` for that.",
        "<function=read_file> is a tag",
        "<function read_file of the library\nreads",
        "<tool_call>\n<function=read_file",
        "a </parameter> b </function> c </tool_call>",
        "x << 3\n<",
    ],
)
def test_what_calls_no_known_tool_is_text(text: str) -> None:
    if text.endswith("<function=read_file"):
        # But for a name that is known and where nothing follows.
        assert answer(text) == ("", [("read_file", {})])
    else:
        assert answer(text) == (text, [])


def test_without_tools_nothing_is_a_call() -> None:
    assert answer(CALL, tools=()) == (CALL, [])


def test_a_text_may_hold_tags() -> None:
    content = "a </parameter> b\n</function>\nc</tool_call>d <parameter=path> </think> <think> <tool_call>"
    call = (
        f"<tool_call>\n<function=write_file>\n<parameter=content>\n{content}\n</parameter>\n"
        "<parameter=path>\np\n</parameter>\n</function>\n</tool_call>"
    )
    assert answer(call) == ("", [("write_file", {"content": content, "path": "p"})])


@pytest.mark.parametrize(
    "quoted",
    [
        CALL,
        READ,
        f"Two calls:\n\n{CALL}\n{CALL}\n\nand one without an end:\n{CALL.replace('</parameter>', '')}\n.",
        f"```\n{CALL}\n```\n",
        f"{CALL}\n{READ}\n{CALL.replace('path', 'content')}",
        CALL.replace("read_file", "no_such_tool"),
        "<function=now>\n</function>\n",
    ],
)
def test_a_text_may_quote_whole_calls(quoted: str) -> None:
    call = (
        f"<tool_call>\n<function=write_file>\n<parameter=content>\n{quoted}\n</parameter>\n"
        "<parameter=path>\np\n</parameter>\n</function>\n</tool_call>"
    )
    assert answer(call + CALL) == ("", [("write_file", {"content": quoted, "path": "p"}), READ_A])


def test_one_line_break_on_each_side_of_a_value_is_not_part_of_it() -> None:
    values = {"a": "a", "\na\n": "a", "\n\na\n\n": "\na\n", "\n": "", "": "", "\n\n": "", "\n \n": " "}
    for written, value in values.items():
        call = f"<tool_call><function=read_file><parameter=path>{written}</parameter></function></tool_call>"
        assert answer(call) == ("", [("read_file", {"path": value})])


def test_of_an_argument_given_twice_the_first_counts() -> None:
    twice = CALL.replace("</function>", "<parameter=path>\nb.py\n</parameter>\n</function>")
    assert answer(twice) == ("", [READ_A])


def test_text_arguments_are_sent_while_they_come_and_others_when_complete() -> None:
    parser = TaggedParser(TOOLS)
    parser.push("</think><tool_call>\n<function=read_file>\n<parameter=path>\n")

    def arguments(text: str) -> str:
        return "".join(one.event.text for one in parser.push(text) if isinstance(one.event, CallArguments))

    assert arguments('C:\\a"b') == '{"path": "C:\\\\a\\"b'
    assert arguments("\n") == ""
    assert arguments("c\n</parameter>\n<") == "\\nc"
    assert arguments("parameter=limit>") == '"'
    assert arguments("1") == arguments("2") == ""
    assert arguments("</parameter>") == ', "limit": 12'


def test_a_text_that_may_be_null_is_sent_once_it_is_not() -> None:
    def call(value: str) -> str:
        return f"<tool_call><function=search><parameter=query>\n{value}\n</parameter></function></tool_call>"

    for value, means in (
        ("null", None),
        ("None", None),
        ("nullable", "nullable"),
        ("Nothing", "Nothing"),
        ("", ""),
    ):
        assert answer(call(value)) == ("", [("search", {"query": means})])
    parser = TaggedParser(TOOLS)
    events = [
        one.event for one in parser.push("</think><tool_call><function=search><parameter=query>what is")
    ]
    assert events[1:] == [CallArguments("call_0", '{"query": "what is')]


def test_a_call_that_was_cut_off_never_ends() -> None:
    for length in range(len("<tool_call>\n<function=read_file>\n<par"), CALL.index("</function>") + 5):
        events = parse(f"</think>{CALL[:length]}", cut=True)
        assert isinstance(events[0], CallStarted)
        assert not any(isinstance(event, CallEnded) for event in events)
        pieces = [event.text for event in events if isinstance(event, CallArguments)]
        with pytest.raises(json.JSONDecodeError):
            json.loads("".join(pieces))
    assert isinstance(parse(f"</think>{CALL}", cut=True)[-1], CallEnded)


def test_a_call_that_was_cut_off_in_its_name_is_nothing() -> None:
    for text in (
        "<tool_call>",
        "<tool_call>\n<func",
        "<tool_call>\n<function=read_fi",
        f"{CALL}\n<tool_call>\n",
    ):
        assert split(f"</think>Hi.\n{text}")[1].startswith("Hi.")
        events = parse(f"</think>Hi.\n{text}", cut=True)
        assert "".join(event.text for event in events if isinstance(event, Text)) == "Hi."


TEMPLATE = "<tools> <tool_call>\n<function=x> ... <|im_start|>assistant\n<think>\n"


def test_the_template_says_what_an_answer_may_hold() -> None:
    reasoning = choose_parser(TEMPLATE, "hi<|im_start|>assistant\n<think>\n", TOOLS)
    assert reasoning.in_reasoning
    assert [one.event for one in reasoning.push("x</think>y")] == [Reasoning("x"), Text("y")]
    closed = choose_parser(TEMPLATE, "hi<|im_start|>assistant\n<think>\n\n</think>\n", TOOLS, "call_7_")
    assert not closed.in_reasoning
    assert [one.event for one in closed.push(f"x{CALL}")][:2] == [
        Text("x"),
        CallStarted("call_7_0", "read_file"),
    ]
    for template in (None, "{{ messages[0].content }}"):
        plain = choose_parser(template, "<think>", TOOLS)
        assert isinstance(plain, PlainParser)
        pieces = plain.push(f"x</think>{CALL}"), plain.push(""), plain.push("y"), plain.finish()
        events = [one.event for piece in pieces for one in piece]
        assert events == [Text(f"x</think>{CALL}"), Text("y")]


PARTS = (
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<function=read_file>",
    "<function=search",
    "\n<function=write_file>\n",
    "<parameter=content>",
    "<function now>",
    "<function=other>",
    "</function>",
    "</function",
    "<parameter=path>",
    "<parameter=query>",
    "<parameter=limit",
    "<parameter=parameter=tags>",
    "</parameter>",
    "<",
    "</",
    "\n",
    " ",
    "\n\n",
    "a",
    "null",
    "12",
    '[1, "é"]',
    'say "so"\\',
    "東京 🥘",
    " " * 70,
)


@given(st.data())
@examples(150)
def test_the_events_do_not_depend_on_how_a_text_is_cut(data: st.DataObject) -> None:
    text = "".join(data.draw(st.lists(st.sampled_from(PARTS), max_size=25)))
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=12)))
    inside, cut = data.draw(st.booleans()), data.draw(st.booleans())
    pieces = [text[a:b] for a, b in pairwise([0, *cuts, len(text)])]
    whole = parse(text, inside=inside, cut=cut)
    assert together(one.event for one in parse_pieces(pieces, inside=inside, cut=cut)) == whole
    check_calls(whole, cut)


def check_calls(events: list[AnswerPart], cut: bool) -> None:
    """Every call that began has ended, its JSON text is its arguments, and nothing else comes between."""
    open_id, json_text = None, ""
    for event in events:
        if isinstance(event, CallStarted):
            assert open_id is None
            open_id, json_text = event.call_id, ""
        elif isinstance(event, CallArguments):
            assert event.call_id == open_id
            json_text += event.text
        elif isinstance(event, CallEnded):
            assert event.call_id == open_id
            assert json.dumps(event.arguments, ensure_ascii=False) == json_text
            open_id = None
        else:
            assert open_id is None
    assert open_id is None or cut


@given(st.text(alphabet="ab<>/\n </think>", max_size=60))
def test_spans_are_where_the_text_stands(text: str) -> None:
    for one in parse_pieces(list(text)):
        if isinstance(one.event, Text):
            assert text[one.start : one.end] == one.event.text


SAFE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<"), max_size=30)


@given(
    path=SAFE,
    content=SAFE,
    limit=st.integers(),
    tags=st.lists(st.none() | st.booleans() | st.integers() | SAFE),
    cuts=st.sets(st.integers(1, 200), max_size=6),
)
def test_what_a_template_writes_is_read_back(
    path: str, content: str, limit: int, tags: list[Any], cuts: set[int]
) -> None:
    tools = [
        tool("f", path={"type": "string"}, content={}, limit={"type": "integer"}, tags={"type": "array"})
    ]
    arguments = {"path": path, "limit": limit, "tags": tags, "other": f"x{content}x"}
    text = "</think>\n<tool_call>\n<function=f>\n"
    for key, value in arguments.items():
        written = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        text += f"<parameter={key}>\n{written}\n</parameter>\n"
    text += "</function>\n</tool_call>"
    marks = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    pieces = [text[a:b] for a, b in pairwise(marks)]
    assert [one.event for one in parse_pieces(pieces, tools)][-1] == CallEnded("call_0", arguments)


def test_a_long_answer_is_taken_apart_without_looking_at_it_again() -> None:
    """What waits stays short, whatever the answer's length, also within arguments of any type."""
    parser = TaggedParser(TOOLS)
    start = "x</think>"
    call = (
        "<tool_call><function=search><parameter=tags>[",
        "1,\n" * 3000,
        "1]</parameter></function></tool_call>",
    )
    for piece in (start, *"ab <c\n" * 3000, *"".join(call), *" " * 3000, "end"):
        parser.push(piece)
        assert len(parser._cursor.window.text) < 200
