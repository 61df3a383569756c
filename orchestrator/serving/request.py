"""What a client asks of the model, whichever API it speaks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from orchestrator.sampling_params import SamplingParams

Json = Any


@dataclass(frozen=True, slots=True)
class OutputForm:
    """What a text must look like: the answer after its reasoning, or a part of a call.

    Attributes:
        kind: "json" for any JSON object; "json_schema", "regex" or "grammar" (Lark's notation).
        value: the schema as JSON text, the expression or the grammar; empty for "json".
    """

    kind: Literal["json", "json_schema", "regex", "grammar"]
    value: str = ""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages to answer.

    Attributes:
        messages: as chat templates take them: `role`, `content` (a text), and of assistant turns
            `reasoning_content` and `tool_calls`, whose `arguments` are mappings.
        tools: JSON objects of OpenAI's form {"type": "function", "function": {...}}.
        tool_choice: "required" and a function's name force a call; "none" hides the tools.
        parallel_tool_calls: False ends the answer after its first call.
        inputs: what the text must look like that some of the tools take, by the function's name. Such a
            function has one parameter. Functions with `strict` are held to their schema.
    """

    messages: tuple[Mapping[str, Json], ...]
    tools: tuple[Mapping[str, Json], ...] = ()
    tool_choice: str = "auto"
    parallel_tool_calls: bool = True
    inputs: Mapping[str, OutputForm] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One answer wanted.

    Attributes:
        client: who asks, for fairness and limits.
        prompt: a conversation, a text to continue, or token ids.
        choice: which of the `n` answers to the same prompt this is; it is part of the noise's key.
        max_tokens: None for as many as the context allows.
        stop: texts that end the answer and are not part of it.
        top_logprobs: of the likeliest tokens beside each chosen one; None for no probabilities at all.
        reasoning_tokens: after so many reasoning is ended; None for no bound.
    """

    client: str
    prompt: Conversation | str | tuple[int, ...]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    choice: int = 0
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    top_logprobs: int | None = None
    output: OutputForm | None = None
    reasoning_tokens: int | None = None
