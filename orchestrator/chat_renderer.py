"""Renders a chat template; run as a program of its own, so that its time and memory have an end.

A template is a program that came with a download. It can loop for ever, double a text until memory is full,
or recurse until the interpreter dies, in ways no check beforehand finds. The system's limits on a process
hold whatever it does. Standard input is a JSON object with `template`, `variables`, `cpu_s`, `memory_bytes`
and `most_characters`; standard output one with `text`, `error` or, where memory ran out, `memory`.
"""

from __future__ import annotations

import json
import resource
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
    """Answer one request."""
    request = json.loads(sys.stdin.buffer.read())
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
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main()
