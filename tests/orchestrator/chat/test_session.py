"""A conversation's state, what it asks for, its commands, figures and where it goes."""

from __future__ import annotations

import pytest

from orchestrator.chat.address import read_url
from orchestrator.chat.chunks import Ended, Piece, Told
from orchestrator.chat.commands import HELP, Command, Message, read_line
from orchestrator.chat.figures import AnswerFigures, AnswerTokens, summary
from orchestrator.chat.session import Answer, Session, Wishes
from placement.errors import InputError

TOKENS = AnswerTokens(prompt=100, cached=80, completion=21, reasoning=5, drafted=30, accepted=15)


def answered(session: Session, question: str, *pieces: Piece) -> Session:
    answer = Answer(10.0)
    for number, piece in enumerate(pieces):
        answer.take(piece, 12.0 + number)
    return session.answered(question, answer)


def test_a_request_has_all_that_was_said() -> None:
    session = answered(Session("m", system="be brief"), "1", Piece("hm", is_reasoning=True), Piece("one"))
    assert session.request("2")["messages"] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "1"},
        {"role": "assistant", "content": "one", "reasoning": "hm"},
        {"role": "user", "content": "2"},
    ]


def test_a_request_has_the_wishes_that_were_named_and_no_others() -> None:
    plain = {"model", "messages", "stream", "stream_options"}
    assert set(Session("m").request("1")) == plain
    found = Session("m", Wishes(temperature=0.0, reasoning_tokens=0, max_tokens=9)).request("1")
    assert {name: found[name] for name in found.keys() - plain} == {
        "temperature": 0.0,
        "reasoning_budget": 0,
        "max_completion_tokens": 9,
    }


def test_a_reset_forgets_what_was_said_and_keeps_the_rest() -> None:
    session = answered(Session("m", system="s"), "1", Piece("one")).reset()
    assert session.messages() == [{"role": "system", "content": "s"}]
    assert len(session.answers) == 1
    assert session.with_system("").messages() == []


def test_figures_are_of_tokens_after_the_first_and_the_time_they_took() -> None:
    answer = Answer(10.0)
    for at_s, said in ((12.0, Piece("a")), (15.0, Ended("stop")), (16.0, Told(TOKENS))):
        answer.take(said, at_s)
    figures = answer.figures()
    assert figures == AnswerFigures(TOKENS, wait_s=2.0, writing_s=4.0)
    found = summary([figures, AnswerFigures(None, wait_s=4.0, writing_s=100.0)])
    assert (found.answers, found.told, found.tokens_per_s, found.wait_s) == (2, 1, 5.0, 3.0)
    assert (found.prompt_tokens, found.cached_tokens, found.completion_tokens) == (100, 80, 21)
    assert (found.reasoning_tokens, found.accepted_share) == (5, 0.5)


def test_figures_that_nobody_told_are_none() -> None:
    nothing = summary([])
    assert nothing.tokens_per_s is nothing.wait_s is nothing.accepted_share is None
    assert summary([Answer(1.0).figures()]).tokens_per_s is None
    assert summary([AnswerFigures(AnswerTokens(completion=1), 0.0, 0.0)]).tokens_per_s is None


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", None),
        ("  \n", None),
        (" hi there \n", Message("hi there")),
        ("//etc is a folder", Message("/etc is a folder")),
        ("/stats", Command("stats")),
        ("/system  be brief ", Command("system", "be brief")),
        ("/system", Command("system")),
        ("/save a b.json", Command("save", "a b.json")),
    ],
)
def test_a_line_is_a_message_or_a_command(line: str, expected: object) -> None:
    assert read_line(line) == expected


@pytest.mark.parametrize(
    ("line", "words"),
    [("/nonsense", "/stats, .*/quit"), ("/save", "FILE"), ("/quit now", "'now'"), ("/", "//")],
)
def test_a_command_that_cannot_be_done_is_named(line: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        read_line(line)


def test_help_names_every_command() -> None:
    assert all(isinstance(read_line(f"/{name} {text}"), Command) for name, (text, _) in HELP.items())


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("http://localhost:8000/v1/", "http://localhost:8000"),
        ("https://box.lan", "https://box.lan:443"),
        ("http://[::1]:9/potluck/v1", "http://[::1]:9/potluck"),
    ],
)
def test_a_url_leads_to_a_server(url: str, expected: str) -> None:
    assert str(read_url(url)) == expected


@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1:8000",
        "ftp://a",
        "http://",
        "http://a:x",
        "http://a:70000",
        "http://a b",
        "http://a\n/v1",
        "http://key@a",
        "http://a?key=1",
        "http://[::1",
    ],
)
def test_a_url_that_leads_nowhere_is_named(url: str) -> None:
    with pytest.raises(InputError, match="--url"):
        read_url(url)


def test_a_key_on_the_network_is_open_to_listeners_without_tls() -> None:
    assert read_url("http://10.0.0.1:8000").is_open_to_listeners
    assert not read_url("https://10.0.0.1:8000").is_open_to_listeners
    assert not read_url("http://[::1]:8000").is_open_to_listeners
