"""A Python process of Potluck's on some box, spoken to over its standard input and output."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from placement.errors import BoxUnreachable
from placement.files.json_file import parse_json
from placement.files.quote import one_line

_MOST_TEXT = 400


class Child:
    """A running one; `name` of its box is for messages. Reading ends with the process."""

    def __init__(self, name: str, process: subprocess.Popen[str], tell: Callable[[str], None]) -> None:
        self._name = name
        self._process = process
        self._said = ""
        self._tell = tell
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def send(self, document: object) -> None:
        """A line of JSON.

        Raises:
            BoxUnreachable: the process has ended.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(document) + "\n")
            self._process.stdin.flush()
        except OSError:
            raise self._ended() from None

    def line(self) -> str:
        """The next line of its output, without its end.

        Raises:
            BoxUnreachable: the process has ended.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.endswith("\n"):
            raise self._ended()
        return line[:-1]

    def receive(self) -> Any:
        """The next line as JSON; raises BoxUnreachable where it is none, or the process has ended."""
        return parse_json(self.line(), BoxUnreachable, self._name, "JSON from its own Potluck")

    def _listen(self) -> None:
        """Standard error: progress, and at last why it ended."""
        assert self._process.stderr is not None
        with suppress(ValueError, OSError):
            for line in self._process.stderr:
                self._said = one_line(line.strip())[:_MOST_TEXT]
                self._tell(self._said)

    def _ended(self) -> BoxUnreachable:
        self._process.wait()
        self._listener.join(1.0)
        return BoxUnreachable(f"{self._name}: its probe ended: {self._said or 'it said nothing'}")


def _no_word(said: str) -> None:
    """Of a child whose progress nobody watches."""


@contextmanager
def running(name: str, command: Sequence[str], tell: Callable[[str], None] = _no_word) -> Iterator[Child]:
    """Start `command`, and end it with the block.

    Args:
        tell: called with each line of its standard error, from a thread of its own.

    Raises:
        BoxUnreachable: it cannot be started.
    """
    pipe = subprocess.PIPE
    try:
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    except OSError as error:
        raise BoxUnreachable(f"{name}: cannot start {command[0]}: {error.strerror}") from error
    try:
        yield Child(name, process, tell)
    finally:
        assert process.stdin is not None
        assert process.stdout is not None
        # Its end is what tells a process behind ssh to end too.
        with suppress(OSError):
            process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            process.wait(1.0)
        process.kill()
        process.wait()
        process.stdout.close()
