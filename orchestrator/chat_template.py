"""A checkpoint's chat template: found in its files, rendered within bounds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from placement.errors import CheckpointError, InputError
from placement.files.input_file import read_text
from placement.files.quote import one_line, quote
from placement.units import size

TEMPLATE_FILE = "chat_template.jinja"
MOST_TEMPLATE_BYTES = 1_000_000
CPU_S = 5
MEMORY_BYTES = 2**29
MOST_CHARACTERS = 4_000_000
# CPU time is what counts; this ends a template that waits.
WALL_S = 120


def find_template(model_dir: Path, settings: Mapping[str, Any]) -> str | None:
    """The template of chat_template.jinja, or else of tokenizer_config.json; None where there is none.

    Args:
        settings: the content of tokenizer_config.json. Its `chat_template` is a text, or a list of named ones
            of which "default" is meant.

    Raises:
        CheckpointError: the template is no text.
    """
    path = model_dir / TEMPLATE_FILE
    if os.path.lexists(path):
        return read_text(path, CheckpointError, "a chat template", most_bytes=MOST_TEMPLATE_BYTES)
    template = settings.get("chat_template")
    if isinstance(template, list):
        named = [entry for entry in template if isinstance(entry, dict) and entry.get("name") == "default"]
        template = named[0].get("template") if named else None
    if template is not None and not isinstance(template, str):
        raise CheckpointError(
            f"{model_dir / 'tokenizer_config.json'}: chat_template is {quote(template)}, expected a text"
        )
    return template


class Renderer:
    """Renders templates in processes of their own, which may take so much time and memory.

    It keeps one process that forks them and has the last template's code, so that a conversation takes
    milliseconds. Any thread may call it; one text is rendered at a time.
    """

    def __init__(
        self,
        *,
        cpu_s: int = CPU_S,
        memory_bytes: int = MEMORY_BYTES,
        most_characters: int = MOST_CHARACTERS,
        wall_s: int = WALL_S,
    ) -> None:
        self._cpu_s = cpu_s
        self._memory_bytes = memory_bytes
        self._limits = {
            "cpu_s": cpu_s,
            "memory_bytes": memory_bytes,
            "most_characters": most_characters,
            "wall_s": wall_s,
        }
        self._wall_s = wall_s
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def render(
        self,
        template: str,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        special: Mapping[str, str],
    ) -> str:
        """The text of a conversation up to where the model answers.

        Args:
            messages, tools: plain JSON values.
            special: `bos_token` and the like, as templates use them.

        Raises:
            InputError: the template refuses the messages, fails, or takes too much.
        """
        conversation = {"messages": messages, "tools": tools, "add_generation_prompt": True}
        request = {"variables": {**conversation, **special}, **self._limits}
        with self._lock:
            answer = self._asked(_framed(template) + _framed(request))
        ended = answer.get("ended")
        if ended == -signal.SIGALRM:
            raise InputError(f"the chat template takes longer than {self._wall_s} s")
        if ended in (-signal.SIGXCPU, -signal.SIGKILL):
            raise InputError(f"the chat template takes more than {self._cpu_s} s of computing")
        if ended is not None:
            raise InputError(
                "the chat template takes down its renderer; it nests too deeply or takes too much memory"
            )
        if "memory" in answer:
            raise InputError(f"the chat template takes more than {size(self._memory_bytes)} of memory")
        if "error" in answer:
            raise InputError(
                f"the chat template refuses these messages or fails: {one_line(answer['error'])}"
            )
        return str(answer["text"])

    def close(self) -> None:
        """End its process; another one is started when it is wanted."""
        with self._lock:
            self._end()

    def _asked(self, request: bytes) -> dict[str, Any]:
        # The system, or a user, may have ended it for no fault of this request.
        answer = self._said(request) or self._said(request)
        found: dict[str, Any] = json.loads(answer) if answer else {"ended": 1}
        return found

    def _said(self, request: bytes) -> bytes:
        """The process's answer; nothing where it ended meanwhile."""
        process = self._process or self._begin()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(request)
            process.stdin.flush()
            header = process.stdout.read(8)
            answer = process.stdout.read(int.from_bytes(header, "little"))
        except OSError:
            answer = b""
        if not answer:
            self._end()
        return answer

    def _begin(self) -> subprocess.Popen[bytes]:
        # By its path, and without that folder among the places to import from: our modules do not load.
        program = str(Path(__file__).with_name("chat_renderer.py"))
        self._process = subprocess.Popen(
            [sys.executable, "-P", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        weakref.finalize(self, _ended, self._process)
        return self._process

    def _end(self) -> None:
        if self._process is not None:
            _ended(self._process)
            self._process = None


def _framed(value: object) -> bytes:
    text = json.dumps(value).encode()
    return len(text).to_bytes(8, "little") + text


def _ended(process: subprocess.Popen[bytes]) -> None:
    """End a renderer: it has nothing to do once its input ends."""
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()
    process.wait()
