"""Renders a chat template; run as a program of its own, so that its time and memory have an end.

A template is a program that came with a download. It can loop for ever, double a text until memory is full,
or recurse until the interpreter dies, in ways no check beforehand finds. The system's limits on a process
hold whatever it does, so each request is rendered by a process forked for it.

Compiling takes longer than rendering, and it too is under the template's control: it nests, and constants
are worked out. So a forked process compiles as well. It hands back the code as bytes, which this process
keeps, never loads, and gives to the next one that renders the same template.

Standard input has requests, standard output an answer to each: JSON texts, each behind its length, 8 bytes,
lowest first. A request is two of them: the template, then an object with `variables`, `cpu_s`,
`memory_bytes`, `most_characters` and `wall_s`. An answer is one: an object with `text`, `error`, `memory`
where that ran out, or `ended`: how the process ended that gave none, as `os.waitstatus_to_exitcode` tells it.
"""

from __future__ import annotations

import gc
import json
import marshal
import os
import resource
import signal
import sys
from contextlib import suppress
from types import CodeType
from typing import Any, BinaryIO

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

# The shipped template of 3 kB compiles to 15 kB. Code that is larger than this is made for each request anew.
MOST_CODE_BYTES = 2**23


def jinja_environment() -> ImmutableSandboxedEnvironment:
    """What templates are compiled and rendered in, with its lexer made."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    # Jinja makes it when it is first asked for, and keeps it.
    _ = environment.lexer
    return environment


def render(
    environment: jinja2.Environment, code: CodeType, variables: dict[str, Any], most_characters: int
) -> str:
    """The text that a compiled template makes of its variables.

    Raises:
        ValueError: it is longer than `most_characters`.
        Exception: whatever the template's code raises.
    """
    template = jinja2.Template.from_code(environment, code, environment.make_globals(None))
    parts, length = [], 0
    for part in template.generate(**variables):
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
    environment = jinja_environment()
    # A collection in a child would copy the pages of all that is here already.
    gc.collect()
    gc.freeze()
    kept_template, kept_code = b"", b""
    while (template := _read(sys.stdin.buffer)) and (request := _read(sys.stdin.buffer)):
        code = kept_code if template == kept_template else b""
        answer, new_code = _in_a_child(environment, template, request, code)
        if new_code:
            kept_template, kept_code = template, new_code
        sys.stdout.buffer.write(_framed(answer))
        sys.stdout.buffer.flush()


def _read(file: BinaryIO) -> bytes:
    """The next text, nothing where the file has ended."""
    return file.read(int.from_bytes(file.read(8), "little"))


def _framed(text: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text


def _in_a_child(
    environment: jinja2.Environment, template: bytes, request: bytes, code: bytes
) -> tuple[bytes, bytes]:
    """An answer, and code to keep where there was none.

    Args:
        template, request: JSON texts.
        code: of the template, as `_as_bytes` gives it; empty where it is to be compiled.
    """
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(read)
            answer, new_code = _answer(environment, template, request, code)
            with os.fdopen(write, "wb") as out:
                out.write(_framed(answer.encode()) + new_code)
            os._exit(0)
        finally:
            os._exit(1)
    os.close(write)
    with os.fdopen(read, "rb") as answers:
        output = answers.read()
    _, status = os.waitpid(child, 0)
    ended = os.waitstatus_to_exitcode(status)
    if ended != 0:
        return json.dumps({"ended": ended}).encode(), b""
    # Cut, not read by its length: that is the child's word.
    end = 8 + int.from_bytes(output[:8], "little")
    return output[8:end], output[end:]


def _answer(environment: jinja2.Environment, template: bytes, body: bytes, code: bytes) -> tuple[str, bytes]:
    request = json.loads(body)
    # One that waits is ended too.
    signal.alarm(request["wall_s"])
    resource.setrlimit(resource.RLIMIT_CPU, (request["cpu_s"], request["cpu_s"]))
    resource.setrlimit(resource.RLIMIT_AS, (request["memory_bytes"], request["memory_bytes"]))
    # A crash of the interpreter leaves no file behind.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answer: dict[str, str]
    new_code = b""
    try:
        if code:
            compiled = marshal.loads(code)
        else:
            compiled = environment.compile(json.loads(template))
            # Before the template's own code runs.
            new_code = _as_bytes(compiled)
        answer = {"text": render(environment, compiled, request["variables"], request["most_characters"])}
    except jinja2.TemplateError as error:
        answer = {"error": str(error.message)[:1000]}
    except MemoryError:
        answer = {"memory": "all of it"}
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {error}"[:1000]}
    return json.dumps(answer), new_code


def _as_bytes(code: CodeType) -> bytes:
    """Code to keep, nothing where it is too large or nests too deeply to be written."""
    with suppress(ValueError, MemoryError):
        found = marshal.dumps(code)
        if len(found) <= MOST_CODE_BYTES:
            return found
    return b""


if __name__ == "__main__":
    main()
