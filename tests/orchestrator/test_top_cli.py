"""`potluck top`: a server's state in a terminal, and what it says of servers that show none."""

from __future__ import annotations

import io
import json
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
from rich.console import Console, Group

from orchestrator.api.keys import make_key
from orchestrator.api.settings import ApiSettings
from orchestrator.api.state_json import state_json
from orchestrator.cli.top_view import frames, view
from orchestrator.cluster.tls import make_tls
from orchestrator.serving.state import ServerState
from placement.errors import InputError
from tests.orchestrator.api.scripted import Scripted
from tests.orchestrator.api.serving import served
from tests.orchestrator.api.watched import HOSTILE, STATE, Watched
from tests.orchestrator.command_line import Potluck, document, says
from tests.orchestrator.test_json_doc import documented, printed, sections

ANN, ANNS = make_key("ann")


def text(shown: Group, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, emoji=False, highlight=False)
    console.print(shown)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@contextmanager
def answering(status: int, content: bytes) -> Iterator[str]:
    """A server that says this to everybody; its URL."""

    class Says(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Says)
    thread = Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join(60)
        server.server_close()


def asking(*states: ServerState | str) -> Callable[[], ServerState]:
    """Gives these in turn; a text is why there is none."""
    left = iter(states)

    def ask() -> ServerState:
        found = next(left)
        if isinstance(found, str):
            raise InputError(found)
        return found

    return ask


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.touch(0o600)
    path.write_text(f"{ANN}\n")
    return path


def test_a_server_is_shown_once_without_a_terminal(potluck: Potluck) -> None:
    with served(Scripted(), source=Watched()) as server:
        for once in ((), ("--once",)):
            code, out, err = potluck("top", "--url", server.url, *once)
            assert (code, err) == (0, "")
            assert "tiny: 31.2 tokens/s, 1 running, 1 waiting, up 12 s" in out
        assert potluck("top", "--url", f"{server.url}/v1")[0] == 0


def test_json_is_the_state_as_documented(potluck: Potluck) -> None:
    with served(Scripted(), source=Watched()) as server:
        made = document(potluck("top", "--url", f"{server.url}/", "--json"))
    assert made == json.loads(state_json(STATE))
    assert printed(made) == documented(sections("json.md")["`potluck top`"])
    lines = re.findall(r"(?m)^- (.*?):", sections("json.md")["`potluck top`"])
    assert made["totals"].keys() == set(re.findall(r"`(\w+)`", " ".join(lines)))


def test_a_key_is_shown_to_a_server_that_wants_one(potluck: Potluck, key_file: Path) -> None:
    with served(Scripted(), ApiSettings(port=0, grace_s=0.0, keys=(ANNS,)), source=Watched()) as server:
        code, _, err = potluck("top", "--url", server.url, "--once")
        assert code == 2
        assert says(err, f"{server.url} … wants a key … --key-file")
        assert potluck("top", "--url", server.url, "--once", "--key-file", key_file)[0] == 0
        key_file.write_text(ANN[:-1])
        code, _, err = potluck("top", "--url", server.url, "--once", "--key-file", key_file)
        assert code == 2
        assert says(err, f"does not know … {key_file}")


@pytest.mark.parametrize("content", [b"", b"two words", b"a\nb", b"\xff", b"x" * 5000])
def test_a_file_that_has_no_key_is_named(potluck: Potluck, key_file: Path, content: bytes) -> None:
    key_file.write_bytes(content)
    code, _, err = potluck("top", "--key-file", key_file)
    assert code == 2
    assert says(err, f"--key-file {key_file} … one key")
    assert says(potluck("top", "--key-file", key_file.with_name("none"))[2], "none … no such file")


def test_nobody_there_is_one_line(potluck: Potluck) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    code, out, err = potluck("top", "--url", url, "--json")
    assert (code, out) == (2, "")
    assert says(err, f"{url} … nothing listens there")


@pytest.mark.parametrize(
    "url",
    ["", "8000", "127.0.0.1:8000", "ftp://x", "http://", "http://x:99999", "http://x/?api", "http://[x"],
)
def test_what_is_no_url_of_a_server_is_said(potluck: Potluck, url: str) -> None:
    code, _, err = potluck("top", "--url", url)
    assert code == 2
    assert says(err, "--url … expected … http://127.0.0.1:8000")


@pytest.mark.parametrize(
    ("status", "content", "words"),
    [
        (200, b"<html>", "not a server's state"),
        (200, b"{}", "not a server's state … model"),
        (404, b"", "status 404"),
        (503, b'{"error": {"message": "it\\u001b[2J stops\\nsoon"}}', "status 503: it"),
        (500, b'{"error": 3}', "status 500"),
        (500, b"[" * 100_000, "status 500"),
    ],
)
def test_other_servers_are_one_line(potluck: Potluck, status: int, content: bytes, words: str) -> None:
    with answering(status, content) as url:
        code, out, err = potluck("top", "--url", url, "--once")
    assert (code, out) == (2, "")
    assert says(err, f"{url} … {words}")
    assert "\x1b[2J" not in err


def test_what_speaks_no_http_is_one_line(potluck: Potluck) -> None:
    def speak(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(1000)
            connection.sendall(b"SSH-2.0-none\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = Thread(target=speak, args=(listener,))
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        code, _, err = potluck("top", "--url", url, "--once")
        thread.join(60)
    assert code == 2
    assert says(err, f"{url}: no answer of a server")


def test_a_certificate_must_be_trusted(
    potluck: Potluck, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_tls("test", [], datetime.now(UTC))
    for name in ("key", "certificate", "authority"):
        (tmp_path / name).write_bytes(getattr(made, name))
    settings = ApiSettings(
        port=0, grace_s=0.0, tls_key=tmp_path / "key", tls_certificate=tmp_path / "certificate"
    )
    with served(Scripted(), settings, source=Watched()) as server:
        assert says(potluck("top", "--url", server.url)[2], "not trusted … SSL_CERT_FILE")
        plain = server.url.replace("https", "http")
        assert says(potluck("top", "--url", plain)[2], f"{plain}: … try https://")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority"))
        assert potluck("top", "--url", server.url)[0] == 0


def test_names_of_peers_move_no_cursor() -> None:
    shown = text(view(replace(STATE, model=HOSTILE, lack=HOSTILE), None), width=200)
    assert "\x1b" not in shown
    assert shown.count("<img src=x onerror=alert(1)> [31m") >= 4


def test_boxes_requests_parts_and_events_are_shown() -> None:
    lines = text(view(STATE, None), 160).splitlines()
    assert any(re.match(r"head +serving +2 +2.0 kB +4.0 kB +75.0%", line) for line in lines)
    assert any(re.match(r"ann #8 +waiting +0/5 +0/256 +- +1 s", line) for line in lines)
    assert any(re.match(r"attention +7.5 ms +37.5%", line) for line in lines)
    assert any(re.match(r"all +20.0 ms +100.0%", line) for line in lines)
    assert [line for line in lines if " ago: " in line][-1] == "60 s ago: began"


def test_what_speaks_of_the_servers_own_terminal_is_left_out() -> None:
    event = replace(STATE.events[0], text="tiny at http://127.0.0.1:8000; Ctrl-C stops it")
    shown = text(view(replace(STATE, events=(event, *STATE.events)), None), 160)
    assert "Ctrl-C" not in shown
    assert shown.count(" ago: ") == len(STATE.events)


def test_parts_are_of_the_steps_since_the_last_look() -> None:
    totals = replace(STATE.totals, steps=210, step_parts_s={"attention": 1.6, "remote_wait": 2.8})
    shown = text(view(replace(STATE, totals=totals), STATE))
    assert re.search(r"attention +10.0 ms +25.0%", shown)
    assert re.search(r"all +40.0 ms +100.0%", shown)
    # The server began anew: less than before has nothing in common with it.
    assert re.search(r"attention +7.5 ms +37.5%", text(view(STATE, replace(STATE, totals=totals))))


def test_a_server_that_falls_silent_leaves_its_last_word() -> None:
    shown = frames(asking(STATE, "nothing listens there", replace(STATE, tokens_per_s=5.0)))
    assert "31.2 tokens/s" in text(next(shown))
    silent = text(next(shown))
    assert "31.2 tokens/s" in silent
    assert "nothing listens there" in silent
    assert "5.0 tokens/s" in text(next(shown))
    with pytest.raises(InputError, match="never"):
        next(frames(asking("never")))


def test_it_fits_a_narrow_terminal() -> None:
    assert max(map(len, text(view(STATE, None), 60).splitlines())) <= 60


@pytest.mark.parametrize("width", [30, 60])
def test_the_parts_of_a_step_and_their_sum_are_aligned(width: int) -> None:
    lines = text(view(STATE, None), width).splitlines()
    rows = lines[lines.index("a step") + 1 :][:5]
    assert [row.split()[0] for row in rows if row[:1].isalpha()] == [
        "part",
        "attention",
        "remote_wait",
        "all",
    ]
    assert len({len(row.rstrip()) for row in rows}) == 1


def test_a_server_that_times_no_parts_has_no_table_of_them() -> None:
    totals = replace(STATE.totals, step_parts_s={})
    assert "a step" not in text(view(replace(STATE, totals=totals), None))
