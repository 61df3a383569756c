"""Renders a chat template; run as a program of its own, so that its time and memory have an end.

A template is a program that came with a download. It can loop for ever, double a text until memory is full,
or recurse until the interpreter dies, in ways no check beforehand finds. The system's limits on a process
hold whatever it does, so each request is rendered by a process forked for it.

Standard input has requests, standard output an answer to each: a JSON text behind its length, 8 bytes, lowest
first. A request has `template`, `variables`, `cpu_s`, `memory_bytes`, `most_characters` and `wall_s`. An
answer has `text`, `error`, `memory` where that ran out, or `ended`: how the process ended that gave none, as
`os.waitstatus_to_exitcode` tells it.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment


def render(template: str, variables: dict[str, Any], most_characters: int) -> str:
    """The text that the template makes of its variables.

    Raises:
        ValueError: it is longer than `most_characters`.
        Exception: whatever the template's code raises.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    parts, length = [], 0
    for part in environment.from_string(template).generate(**variables):
        parts.append(part)
        length += len(part)
        if length > most_characters:
            raise ValueError(f"more than {most_characters:,} characters")
    return "".join(parts)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML characters, which models were not trained on. The arguments are those
    # that published templates pass.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def main() -> None:
    """Answer requests until there are no more."""
    while len(header := sys.stdin.buffer.read(8)) == 8:
        body = sys.stdin.buffer.read(int.from_bytes(header, "little"))
        answer = _in_a_child(body)
        sys.stdout.buffer.write(len(answer).to_bytes(8, "little") + answer)
        sys.stdout.buffer.flush()


def _in_a_child(body: bytes) -> bytes:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(read)
            with os.fdopen(write, "wb") as out:
                out.write(_answer(body).encode())
            os._exit(0)
        finally:
            os._exit(1)
    os.close(write)
    with os.fdopen(read, "rb") as answers:
        answer = answers.read()
    _, status = os.waitpid(child, 0)
    ended = os.waitstatus_to_exitcode(status)
    return answer if ended == 0 else json.dumps({"ended": ended}).encode()


def _answer(body: bytes) -> str:
    request = json.loads(body)
    # One that waits is ended too.
    signal.alarm(request["wall_s"])
    resource.setrlimit(resource.RLIMIT_CPU, (request["cpu_s"], request["cpu_s"]))
    resource.setrlimit(resource.RLIMIT_AS, (request["memory_bytes"], request["memory_bytes"]))
    # A crash of the interpreter leaves no file behind.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answer: dict[str, str]
    try:
        answer = {"text": render(request["template"], request["variables"], request["most_characters"])}
    except jinja2.TemplateError as error:
        answer = {"error": str(error.message)[:1000]}
    except MemoryError:
        answer = {"memory": "all of it"}
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {error}"[:1000]}
    return json.dumps(answer)


if __name__ == "__main__":
    main()
