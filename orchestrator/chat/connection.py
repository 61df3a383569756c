"""Asks a server over HTTP. What it answers is not trusted: sizes and types are checked."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any

from orchestrator.chat.address import Address
from orchestrator.chat.chunks import DONE, Said, error_code, error_text, read_chunk
from orchestrator.chat.sse import EventReader
from orchestrator.chat.trust import may_want_tls, open_connection, tls_trouble
from placement.errors import AnswerLost, NotServed
from placement.files.quote import first_line, one_line

_CONNECT_S = 10.0
# A server says something at least every 10 seconds.
_SILENT_S = 60.0
_MOST_BODY_BYTES = 1_000_000
_PART_BYTES = 65_536
_MOST_NAME = 200


class Server:
    """One that is asked. It has a connection only while an answer comes."""

    def __init__(self, address: Address, key: str | None, *, silent_s: float = _SILENT_S) -> None:
        """`silent_s`: a server that says nothing for so long is taken for gone."""
        self._address = address
        self._key = key
        self._silent_s = silent_s

    def model(self) -> str:
        """The name of the model that it serves.

        Raises:
            NotServed: it is not there, refuses this client, or is something else.
        """
        with self._response("GET", "/v1/models") as response:
            document = _parsed(self._read(response))
        data = document.get("data") if isinstance(document, dict) else None
        first = data[0] if isinstance(data, list) and data else None
        name = first.get("id") if isinstance(first, dict) else None
        if not isinstance(name, str) or not 0 < len(name) <= _MOST_NAME or not name.isprintable():
            raise self._something_else()
        return name

    def answer(self, request: Mapping[str, Any]) -> Generator[Said, None, None]:
        """What comes of a request for a chat completion. To stop it, close the generator.

        Raises:
            NotServed: it is not there, refuses this client, or cannot take this request now.
            AnswerLost: the answer breaks off.
        """
        with self._response("POST", "/v1/chat/completions", request) as response:
            if response.headers.get_content_type() != "text/event-stream":
                raise self._something_else()
            reader = EventReader()
            while part := self._read_some(response):
                for data in reader.push(part):
                    if data == DONE:
                        return
                    yield from read_chunk(data)
        raise AnswerLost(f"{self._address}: the answer broke off; the server may have ended")

    @contextmanager
    def _response(
        self, method: str, path: str, body: Mapping[str, Any] | None = None
    ) -> Iterator[http.client.HTTPResponse]:
        headers = {"Accept": "text/event-stream" if body else "application/json"}
        content = None
        if body is not None:
            # Half of a surrogate pair, as a terminal may give it, has no UTF-8.
            content = json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")
            headers["Content-Type"] = "application/json"
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        with closing(open_connection(self._address, _CONNECT_S)) as connection:
            try:
                connection.connect()
                assert connection.sock is not None
                connection.sock.settimeout(self._silent_s)
                connection.request(method, self._address.path + path, content, headers)
                response = connection.getresponse()
            except (OSError, http.client.HTTPException) as error:
                raise self._not_there(error) from None
            with closing(response):
                if response.status != 200:
                    raise self._refused(response)
                yield response

    def _read(self, response: http.client.HTTPResponse) -> bytes:
        try:
            content = response.read(_MOST_BODY_BYTES + 1)
        except (OSError, http.client.HTTPException) as error:
            raise self._broken(error) from None
        if len(content) > _MOST_BODY_BYTES:
            raise self._something_else()
        return content

    def _read_some(self, response: http.client.HTTPResponse) -> bytes:
        try:
            return response.read1(_PART_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise self._broken(error) from None

    def _not_there(self, error: Exception) -> NotServed:
        if (trouble := tls_trouble(error)) is not None:
            return NotServed(f"{self._address}: {trouble}")
        # One that hangs up without a word is both.
        if isinstance(error, http.client.HTTPException) and not isinstance(error, OSError):
            return self._something_else()
        where = f"{self._address}: no server answers ({_reason(error)})"
        if may_want_tls(self._address, error):
            return NotServed(f"{where}; try https:// in --url")
        return NotServed(f"{where}: start one with `potluck serve`, or name another with --url")

    def _broken(self, error: Exception) -> AnswerLost:
        if isinstance(error, TimeoutError):
            return AnswerLost(f"{self._address}: the server has said nothing for {self._silent_s:g} s")
        return AnswerLost(f"{self._address}: the answer broke off ({_reason(error)})")

    def _refused(self, response: http.client.HTTPResponse) -> NotServed:
        document = _parsed(self._read(response))
        why = error_text(document) or one_line(response.reason)
        if response.status == 401:
            advice = "wrong key in --key-file" if self._key else "it wants a key: name a file with --key-file"
            return NotServed(f"{self._address}: {advice} ({why})")
        where = f"{self._address}: status {response.status}: {why}"
        after = response.headers.get("retry-after", "")
        if response.status in (429, 503) and after.isdecimal() and len(after) < 10:
            return NotServed(f"{where}; try again in {int(after)} s")
        if error_code(document) == "context_length_exceeded":
            return NotServed(f"{where}, or forget what was said with /reset")
        return NotServed(where)

    def _something_else(self) -> NotServed:
        return NotServed(f"{self._address}: something else answers there; expected a `potluck serve`")


def _parsed(content: bytes) -> Any:
    """None for what is no JSON."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "it takes too long"
    if isinstance(error, socket.gaierror):
        return "no machine has this name"
    return (isinstance(error, OSError) and error.strerror) or first_line(error)
