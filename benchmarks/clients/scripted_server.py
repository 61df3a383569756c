"""A server whose engine answers as a model would that knows one city and one command."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.clients.agents import COMMAND
from orchestrator.serving.answer import CallArguments, CallEnded, CallStarted, Reasoning, Text
from orchestrator.serving.request import Conversation, GenerationRequest
from tests.orchestrator.api.scripted import STARTED, Script, Scripted, finished
from tests.orchestrator.api.serving import served

# Of Claude Code and of Codex: the tool that runs a command, and its parameter.
SHELLS = {"Bash": "command", "exec_command": "cmd"}


def script(request: GenerationRequest) -> Script:
    """Call a tool once; answer in JSON where a form is wanted, or else in words."""
    prompt = request.prompt
    if isinstance(prompt, Conversation) and prompt.tools:
        if all(turn["role"] != "tool" for turn in prompt.messages):
            return _call(prompt)
    elif request.output is not None:
        return (STARTED, Text('{"city": "Oslo", '), Text('"people": 700000}'), finished())
    return (STARTED, Reasoning("easy"), Text("Oslo has "), Text("4 degrees."), finished())


def _call(prompt: Conversation) -> Script:
    functions = {tool["function"]["name"]: tool["function"] for tool in prompt.tools}
    name = next((shell for shell in SHELLS if shell in functions), next(iter(functions)))
    properties = functions[name]["parameters"].get("properties", {})
    arguments = (
        {SHELLS[name]: COMMAND} if name in SHELLS else {key: _value(properties[key]) for key in properties}
    )
    text = json.dumps(arguments)
    return (
        STARTED,
        Reasoning("a tool "),
        Reasoning("knows"),
        CallStarted("0", name),
        CallArguments("0", text[:5]),
        CallArguments("0", text[5:]),
        CallEnded("0", arguments),
        finished("tool_calls"),
    )


def _value(schema: Any) -> Any:
    return 700_000 if schema.get("type") in ("number", "integer") else "Oslo"


@contextmanager
def scripted_server() -> Iterator[str]:
    """Its URL."""
    with served(Scripted(script)) as server:
        yield server.url
