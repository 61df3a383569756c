"""A Python process of Potluck's on some box, spoken to over its standard input and output."""

from __future__ import annotations

import json
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import PurePath
from typing import Any

from placement.errors import BoxUnreachable
from placement.files.json_file import parse_json
from placement.files.quote import one_line

_MOST_TEXT = 400
_LINES_REMEMBERED = 100
_SSH_FAILED = 255
"""What ssh ends with where it cannot reach a box; all other codes are those of the command there."""


class Child:
    """A running one; `name` of its box is for messages. Reading ends with the process."""

    def __init__(
        self,
        name: str,
        process: subprocess.Popen[str],
        tell: Callable[[str], None],
        why_unreachable: Callable[[str], str] | None,
    ) -> None:
        self._name = name
        self._process = process
        self._said: deque[str] = deque(maxlen=_LINES_REMEMBERED)
        self._tell = tell
        self._why_unreachable = why_unreachable
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
                self._said.append(line.rstrip())
                self._tell(one_line(line.strip())[:_MOST_TEXT])

    def _ended(self) -> BoxUnreachable:
        self._process.wait()
        self._listener.join(1.0)
        if self._process.returncode == _SSH_FAILED and self._why_unreachable is not None:
            return BoxUnreachable(self._why_unreachable("\n".join(self._said)))
        return BoxUnreachable(f"{self._name}: its probe ended: {last_words(list(self._said))}")


def last_words(lines: Sequence[str]) -> str:
    """What a Python process said at its end, in one line: an exception whole, and where it was raised."""
    lines = [line for line in lines if line.strip()]
    if not lines:
        return "it said nothing"
    # Everything behind a traceback's last indented line is the exception: its type, and all that it says.
    places = [number for number, line in enumerate(lines) if line.startswith('  File "')]
    if not places:
        return one_line(lines[-1])
    said = next((n for n in range(places[-1], len(lines)) if not lines[n].startswith(" ")), len(lines) - 1)
    file, line_number = lines[places[-1]].split('"')[1], lines[places[-1]].split("line ")[-1]
    where = f"{PurePath(file).name}:{line_number.partition(',')[0]}"
    return f"{one_line(' '.join(lines[said:]))} ({where})"


def _no_word(said: str) -> None:
    """Of a child whose progress nobody watches."""


@contextmanager
def running(
    name: str,
    command: Sequence[str],
    tell: Callable[[str], None] = _no_word,
    why_unreachable: Callable[[str], str] | None = None,
) -> Iterator[Child]:
    """Start `command`, and end it with the block.

    Args:
        tell: called with each line of its standard error, from a thread of its own.
        why_unreachable: what to say where ssh cannot reach the box, from what ssh said; None without ssh.

    Raises:
        BoxUnreachable: it cannot be started.
    """
    pipe = subprocess.PIPE
    try:
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    except OSError as error:
        raise BoxUnreachable(f"{name}: cannot start {command[0]}: {error.strerror}") from error
    try:
        yield Child(name, process, tell, why_unreachable)
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
