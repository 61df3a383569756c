"""Reads server-sent events from bytes, however they are cut; what comes is not trusted."""

from __future__ import annotations

from placement.errors import NotServed
from placement.units import size

MOST_EVENT_BYTES = 4_000_000
"""Far more than an event of one answer has."""


class EventReader:
    """Gives the data of each event; names, comments and all else of an event are passed over."""

    def __init__(self) -> None:
        self._line = bytearray()
        self._data: list[str] = []
        self._event_bytes = 0
        self._ended_with_cr = False

    def push(self, content: bytes) -> list[str]:
        """The data of the events that `content` completes.

        Raises:
            NotServed: an event is larger than any answer's, or no UTF-8.
        """
        events = []
        for byte_line in self._lines(content):
            if not byte_line:
                if self._data:
                    events.append("\n".join(self._data))
                self._data, self._event_bytes = [], 0
                continue
            name, _, value = byte_line.partition(b":")
            if name == b"data":
                self._event_bytes += len(byte_line) + 1
                self._check(self._event_bytes)
                self._data.append(_text(value.removeprefix(b" ")))
        return events

    def _lines(self, content: bytes) -> list[bytes]:
        """Whole lines; they end with CR LF, LF or CR, and a CR LF may be cut in two."""
        if self._ended_with_cr and content.startswith(b"\n"):
            content = content[1:]
            self._ended_with_cr = False
        if not content:
            return []
        self._ended_with_cr = content.endswith(b"\r")
        *whole, rest = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        if whole:
            whole[0] = bytes(self._line) + whole[0]
            self._line.clear()
        self._line += rest
        self._check(len(self._line) + self._event_bytes)
        return whole

    def _check(self, num_bytes: int) -> None:
        if num_bytes > MOST_EVENT_BYTES:
            raise NotServed(
                f"the server sent an event of more than {size(MOST_EVENT_BYTES)}: expected an answer of "
                "`potluck serve`"
            )


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise NotServed(
            "the server sent an event that is no UTF-8: expected one of `potluck serve`"
        ) from None
