"""`potluck chat` against a real server whose engine plays scripts."""

from __future__ import annotations

import asyncio
import fcntl
import io
import json
import os
import select
import socket
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from orchestrator.api.keys import make_key
from orchestrator.api.settings import ApiSettings
from orchestrator.chat.address import read_url
from orchestrator.chat.chunks import Piece
from orchestrator.chat.connection import Server as Client
from orchestrator.cli.chat_screen import Screen
from orchestrator.cluster.tls import make_tls
from orchestrator.serving.answer import Reasoning, Refused, Text
from placement.errors import AnswerLost
from tests.orchestrator.api.scripted import HELLO, STARTED, THOUGHT, Script, Scripted, finished
from tests.orchestrator.api.serving import Server, served, wait_until
from tests.orchestrator.command_line import Potluck, document, says
from tests.orchestrator.processes import DEADLINE_S, ROOT
from tests.orchestrator.test_json_doc import documented, sections

Pipe = Callable[..., None]


@pytest.fixture(scope="module")
def engine() -> Scripted:
    return Scripted()


@pytest.fixture(scope="module")
def server(engine: Scripted) -> Iterator[Server]:
    with served(engine) as running:
        yield running


@pytest.fixture
def pipe(engine: Scripted, monkeypatch: pytest.MonkeyPatch) -> Pipe:
    """Gives standard input these lines. The engine begins anew."""
    engine.script = HELLO
    engine.requests.clear()

    def pipe(*lines: str) -> None:
        content = "".join(f"{line}\n" for line in lines).encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))

    return pipe


def asked(engine: Scripted) -> list[list[tuple[str, str]]]:
    """Who said what, of each request."""
    prompts: list[Any] = [request.prompt for request in engine.requests]
    return [[(turn["role"], turn["content"]) for turn in prompt.messages] for prompt in prompts]


def test_piped_messages_are_answered_one_a_line(
    potluck: Potluck, server: Server, engine: Scripted, pipe: Pipe
) -> None:
    pipe("one", "", "two")
    code, out, err = potluck("chat", "--url", server.url, "--system", "be brief")
    assert (code, out, err) == (0, "Hello\nHello\n", "")
    first = [("system", "be brief"), ("user", "one")]
    assert asked(engine) == [first, [*first, ("assistant", "Hello"), ("user", "two")]]


def test_options_reach_the_engine(potluck: Potluck, server: Server, engine: Scripted, pipe: Pipe) -> None:
    pipe("one")
    options = {"--temperature": 0.5, "--top-p": 0.9, "--top-k": 40, "--min-p": 0.1, "--seed": 7}
    bounds = {"--max-tokens": 50, "--reasoning-tokens": 0}
    words = [word for pair in (options | bounds).items() for word in pair]
    assert potluck("chat", "--url", server.url, *words)[0] == 0
    (request,) = engine.requests
    assert (request.max_tokens, request.reasoning_tokens) == (50, 0)
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.9, 40, 0.1)
    assert sampling.seed == 7


def test_reasoning_is_no_part_of_plain_output(
    potluck: Potluck, server: Server, engine: Scripted, pipe: Pipe
) -> None:
    pipe("one")
    engine.script = THOUGHT
    assert potluck("chat", "--url", server.url) == (0, "42\n", "")


def test_json_has_the_conversation_and_its_figures(
    potluck: Potluck, server: Server, engine: Scripted, pipe: Pipe
) -> None:
    pipe("one", "two")
    engine.script = THOUGHT
    found = document(potluck("chat", "--url", server.url, "--json"))
    assert [message["content"] for message in found["messages"]] == ["one", "42", "two", "42"]
    assert found["messages"][1]["reasoning"] == "let me think"
    assert found["model"] == "scripted"
    figures = found["figures"]
    assert (figures["answers"], figures["prompt_tokens"], figures["cached_tokens"]) == (2, 24, 10)
    assert (figures["completion_tokens"], figures["reasoning_tokens"]) == (14, 6)
    # The script's engine drafts nothing.
    assert figures["accepted_share"] is None
    section = sections("json.md")["`potluck chat`"]
    assert found.keys() | figures.keys() == documented(section).keys()


def test_commands_are_done_and_not_sent(
    potluck: Potluck, server: Server, engine: Scripted, pipe: Pipe, tmp_path: Path
) -> None:
    path = tmp_path / "chat.json"
    pipe(
        "/help",
        "/stats",
        "one",
        "/stats",
        "/reset",
        "/system in verse",
        "//two",
        f"/save {path}",
        "/quit",
        "no",
    )
    code, out, err = potluck("chat", "--url", server.url)
    assert (code, out) == (0, "Hello\nHello\n"), err
    assert asked(engine) == [[("user", "one")], [("system", "in verse"), ("user", "/two")]]
    assert "/system TEXT" in err
    assert "no answers so far" in err
    assert "tokens/s" in err
    assert "system text changed" in err
    # The script's engine drafts nothing.
    assert "drafts" not in err
    saved = json.loads(path.read_text())
    assert [message["content"] for message in saved["messages"]] == ["in verse", "/two", "Hello"]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["/nonsense", "one"], "'/nonsense': expected /stats"),
        (["/save nowhere/chat.json", "one"], "cannot write nowhere/chat.json"),
        (["\udcff", "one"], "standard input, line 1: not UTF-8"),
    ],
)
def test_a_mistake_in_a_pipe_ends_the_chat(
    potluck: Potluck,
    server: Server,
    engine: Scripted,
    pipe: Pipe,
    monkeypatch: pytest.MonkeyPatch,
    lines: list[str],
    expected: str,
) -> None:
    pipe()
    content = "\n".join(lines).encode("utf-8", "surrogateescape")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    code, out, err = potluck("chat", "--url", server.url)
    assert (code, out) == (2, "")
    assert says(err, expected), err
    assert engine.requests == []


@pytest.mark.parametrize(
    ("refusal", "expected"),
    [
        (Refused("busy", "64 wait", 7.0), "status 429: 64 wait; try again in 7 s"),
        (Refused("unavailable", "den is away", 30.0), "status 503: den is away; try again in 30 s"),
        (
            Refused("too_long", "9 tokens of 4"),
            "status 400: 9 tokens of 4, or forget what was said with /reset",
        ),
    ],
)
def test_a_refusal_says_why_and_when_to_try_again(
    potluck: Potluck, server: Server, engine: Scripted, pipe: Pipe, refusal: Refused, expected: str
) -> None:
    pipe("one")
    engine.script = (refusal,)
    code, out, err = potluck("chat", "--url", server.url)
    assert (code, out) == (2, "")
    assert says(err, f"error: {server.url}: {expected}"), err


def test_an_answer_that_breaks_off_keeps_what_came_on_the_screen(
    potluck: Potluck, server: Server, engine: Scripted, pipe: Pipe
) -> None:
    pipe("one", "two")
    engine.script = (STARTED, Text("so far"), finished("lost"))
    code, out, err = potluck("chat", "--url", server.url)
    assert (code, out) == (1, "so far\n")
    assert says(err, "broke off: … send the same request again"), err
    assert len(engine.requests) == 1


def test_an_answer_that_was_cut_is_noted(
    potluck: Potluck, server: Server, engine: Scripted, pipe: Pipe
) -> None:
    pipe("one")
    engine.script = (*HELLO[:-1], finished("loop"))
    code, out, err = potluck("chat", "--url", server.url)
    assert (code, out) == (0, "Hello\n")
    assert says(err, "cut: loop")


@pytest.mark.parametrize(
    ("most", "expected"), [(7, "cut at --max-tokens 7"), (60, "cut at the server's limit")]
)
def test_a_cut_says_whose_limit_it_was(
    potluck: Potluck, server: Server, engine: Scripted, pipe: Pipe, most: int, expected: str
) -> None:
    pipe("one")
    engine.script = (*HELLO[:-1], finished("length"))
    code, out, err = potluck("chat", "--url", server.url, "--max-tokens", most)
    assert (code, out) == (0, "Hello\n")
    assert err.strip() == expected


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ((*THOUGHT[:3], THOUGHT[-1]), "empty: all 7 tokens were reasoning; try --reasoning-tokens 0"),
        ((STARTED, finished()), "the answer is empty"),
    ],
)
def test_an_answer_without_text_says_so(
    potluck: Potluck, server: Server, engine: Scripted, pipe: Pipe, script: Script, expected: str
) -> None:
    pipe("one")
    engine.script = script
    code, out, err = potluck("chat", "--url", server.url)
    assert (code, out) == (0, "")
    assert says(err, expected), err


def test_a_server_with_keys_lets_in_who_has_one(potluck: Potluck, pipe: Pipe, tmp_path: Path) -> None:
    text, ann = make_key("ann")
    files = {"right": f"{text}\n", "wrong": make_key("ann")[0], "empty": "", "two": f"{text} {text}"}
    for name, content in files.items():
        (tmp_path / name).touch(0o600)
        (tmp_path / name).write_text(content)
    with served(Scripted(), ApiSettings(port=0, grace_s=0.0, keys=(ann,))) as locked:
        url = ["chat", "--url", locked.url]
        pipe("one")
        assert potluck(*url, "--key-file", tmp_path / "right") == (0, "Hello\n", "")
        for arguments, expected in (
            ([], "it wants a key: name a file with --key-file"),
            (["--key-file", tmp_path / "wrong"], "wrong key in --key-file"),
            (["--key-file", tmp_path / "empty"], f"{tmp_path}/empty: expected one key alone"),
            (["--key-file", tmp_path / "two"], f"{tmp_path}/two: expected one key alone"),
            (["--key-file", tmp_path / "none"], f"{tmp_path}/none: there is no such file"),
        ):
            code, out, err = potluck(*url, *arguments)
            assert (code, out) == (2, "")
            assert says(err, expected), err
            assert text not in err
        (tmp_path / "right").chmod(0o644)
        assert says(potluck(*url, "--key-file", tmp_path / "right")[2], "other users may use it")


def test_tls_is_spoken_and_a_stranger_is_not_trusted(
    potluck: Potluck, pipe: Pipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_tls("test", [], datetime.now(UTC))
    for name in ("key", "certificate", "authority"):
        (tmp_path / name).write_bytes(getattr(made, name))
    settings = ApiSettings(
        port=0, grace_s=0.0, tls_key=tmp_path / "key", tls_certificate=tmp_path / "certificate"
    )
    with served(Scripted(), settings) as server:
        pipe("one")
        code, _, err = potluck("chat", "--url", server.url)
        assert code == 2
        assert says(err, "not trusted … SSL_CERT_FILE"), err
        plain = server.url.replace("https", "http")
        assert says(potluck("chat", "--url", plain)[2], f"{plain}: … try https://")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none"))
        assert says(potluck("chat", "--url", server.url)[2], f"SSL_CERT_FILE='{tmp_path}/none': there is no")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority"))
        assert potluck("chat", "--url", server.url) == (0, "Hello\n", "")


@contextmanager
def answering(reply: bytes) -> Iterator[str]:
    """Something that answers each connection with these bytes, and its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.settimeout(DEADLINE_S)
                    if connection.recv(65536):
                        connection.sendall(reply)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            # Closing alone would not wake the one that waits in `accept`.
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(DEADLINE_S)


def with_head(body: bytes, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (b"SSH-2.0-OpenSSH\r\n", "something else answers"),
        (with_head(b"<html>"), "something else answers"),
        (with_head(b'{"data": []}'), "something else answers"),
        (with_head(b'{"data": [{"id": "a\\nb"}]}'), "something else answers"),
        (with_head(b"x" * 1_100_000), "something else answers"),
        (with_head(b"[" * 100_000), "something else answers"),
        (with_head(b"x", "404 Not Found"), "status 404: Not Found"),
        (with_head(b'{"error": {"message": "a\\nb"}}', "500 Oh"), "status 500: a b"),
        (with_head(b"", "503 Gone\r\nRetry-After: soon"), "status 503: Gone"),
        (b"", "no server answers"),
    ],
)
def test_what_is_no_server_of_ours_is_one_line(
    potluck: Potluck, pipe: Pipe, reply: bytes, expected: str
) -> None:
    pipe("one")
    with answering(reply) as url:
        code, out, err = potluck("chat", "--url", url)
    assert (code, out) == (2, "")
    assert says(err, f"error: {url}: {expected}"), err


def test_where_nobody_listens_is_one_line(potluck: Potluck, pipe: Pipe) -> None:
    pipe("one")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    code, out, err = potluck("chat", "--url", f"http://127.0.0.1:{port}")
    assert (code, out) == (2, "")
    assert says(err, f"http://127.0.0.1:{port}: no server answers … `potluck serve` … --url"), err
    code, _, err = potluck("chat", "--url", "127.0.0.1:8000")
    assert code == 2
    assert says(err, "--url '127.0.0.1:8000'"), err


def test_a_server_that_falls_silent_is_given_up(engine: Scripted) -> None:
    engine.script = (STARTED, Text("so"), asyncio.Event())
    with served(engine) as server:
        client = Client(read_url(server.url), None, silent_s=0.2)
        said = client.answer({"model": "m", "stream": True, "messages": [{"role": "user", "content": "hi"}]})
        assert next(said) == Piece("so")
        with pytest.raises(AnswerLost, match="said nothing"):
            next(said)
        wait_until(lambda: engine.open == 0)


def test_a_terminal_shows_reasoning_dim_and_obeys_no_orders() -> None:
    out = io.StringIO()
    screen = Screen(out, is_terminal=True)
    for piece in (Piece("hm\x1b[2J", is_reasoning=True), Piece("a\x9bb\r"), Piece("ü\tc")):
        screen.show(piece)
    screen.end()
    assert out.getvalue() == "\x1b[2mhm\ufffd[2J\x1b[0m\n\na\ufffdb\ufffdü\tc\n"


class Terminal:
    """`potluck chat` on a terminal of its own."""

    def __init__(self, *arguments: str) -> None:
        self._master, slave = os.openpty()
        self._shown = ""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "orchestrator.cli.main", "chat", *arguments],
            cwd=ROOT,
            env=os.environ | {"TERM": "xterm"},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)

    def read_until(self, words: str) -> str:
        """What was shown since the last call, as far as these words."""
        while words not in self._shown:
            ready, _, _ = select.select([self._master], [], [], DEADLINE_S)
            assert ready, f"the terminal shows {self._shown!r} and no more"
            try:
                part = os.read(self._master, 65536)
            except OSError:
                part = b""
            assert part, f"the terminal shows {self._shown!r}"
            self._shown += part.decode()
        before, _, self._shown = self._shown.partition(words)
        return before + words

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def close(self) -> None:
        os.close(self._master)
        self.process.kill()
        self.process.wait(DEADLINE_S)


# A key that is pressed while readline gets ready may be lost, which no waiting here can tell.
@pytest.mark.long
def test_a_terminal_goes_on_after_ctrl_c_and_mistakes(
    server: Server, engine: Scripted, pipe: Pipe, tmp_path: Path
) -> None:
    engine.script = (STARTED, Reasoning("let me think"), Text("so far"), asyncio.Event())
    closed = engine.closed
    terminal = Terminal("--url", server.url)
    try:
        terminal.read_until("/help")
        terminal.read_until("> ")
        terminal.type("one\n")
        assert "\x1b[2mlet me think\x1b[0m" in terminal.read_until("so far")
        terminal.type("\x03")
        terminal.read_until("what came is kept")
        wait_until(lambda: engine.closed == closed + 1)
        engine.script = (asyncio.Event(),)
        terminal.type("nothing\n")
        wait_until(lambda: engine.open == 1)
        terminal.type("\x03")
        terminal.read_until("the question is forgotten")
        engine.script = (Refused("busy", "64 wait", 7.0),)
        terminal.type("too much\n")
        terminal.read_until("try again in 7 s")
        terminal.type("/nonsense\n")
        terminal.read_until("'/nonsense': expected")
        terminal.read_until("> ")
        # Python misses a Ctrl-C that comes before it waits for keys, which it does once it shows them.
        terminal.type("half a line")
        terminal.read_until("half a line")
        terminal.type("\x03")
        terminal.read_until("/quit ends")
        engine.script = HELLO
        terminal.type("two\n")
        terminal.read_until("Hello")
        terminal.type("/stats\n")
        terminal.read_until("tokens/s")
        terminal.type(f"/save {tmp_path}/chat.json\n")
        terminal.read_until("4 messages written")
        # Before the prompt the terminal takes whole lines, and would make something else of the key.
        terminal.read_until("> ")
        terminal.type("\x04")
        assert terminal.process.wait(DEADLINE_S) == 0
    finally:
        terminal.close()
    assert asked(engine)[-1] == [("user", "one"), ("assistant", "so far"), ("user", "two")]
    saved = json.loads((tmp_path / "chat.json").read_text())["messages"]
    assert [message["content"] for message in saved] == ["one", "so far", "two", "Hello"]
    assert saved[1]["reasoning"] == "let me think"
