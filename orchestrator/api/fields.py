"""Every field of every request: whether it works, is refused, or is taken and ignored.

The one place that says so: requests are read by it, and docs/api.md shows it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

from orchestrator.api.errors import invalid

MOST_STOPS = 16
MOST_STOP_CHARACTERS = 1000
MOST_BIASES = 1024
MOST_BIAS = 100

Treatment = Literal["works", "refused", "ignored"]


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a request's object.

    Attributes:
        note: what it does here, or why it does nothing.
        but: values of a refused field that ask for nothing, and so pass.
    """

    name: str
    treatment: Treatment
    note: str = ""
    but: tuple[Any, ...] = ()


def _works(**notes: str) -> tuple[Field, ...]:
    return tuple(Field(name, "works", note) for name, note in notes.items())


def _ignored(note: str, *names: str) -> tuple[Field, ...]:
    return tuple(Field(name, "ignored", note) for name in names)


def _refused(name: str, note: str, *but: Any) -> Field:
    return Field(name, "refused", note, but)


_ANY_MODEL = "any name is taken, and none: one model is served, and the answer names it"
_STATELESS = "nothing is kept or told to anybody"
_AUTOMATIC = "prefixes of all prompts are cached without being asked"
_ONE_SPEED = "there is one speed"

_TOP_K = "the likeliest tokens to choose from, up to 1,000,000; 0 for all"
_STOPS = f"up to {MOST_STOPS} texts of 1 to {MOST_STOP_CHARACTERS:,} characters each"
_MOST_TOOLS = "4,096 at most"
_EXTRAS = _works(
    min_p="an extra of ours, 0 to 1: leaves out tokens less likely than this share of the likeliest",
    repetition_penalty="an extra of ours, over 0, up to 10: over 1 makes tokens seen before less likely",
    seed="-2^63 to 2^64 - 1; same seed, same prompt, same answer; drawn at random where it is missing",
    ignore_eos="an extra of ours: goes on after the model's own end, up to the limit",
)
_PENALTIES = _works(
    presence_penalty="-2 to 2",
    frequency_penalty="-2 to 2",
    logit_bias=f"-{MOST_BIAS} to {MOST_BIAS} for each of at most {MOST_BIASES:,} token ids",
)
_TEMPERATURE = _works(temperature="0 to 2; 0 takes the likeliest token", top_p="over 0, up to 1")

CHAT = (
    *_works(
        model=_ANY_MODEL,
        messages="1 to 10,000; roles system, developer, user, assistant, tool; text only. `reasoning` or "
        "`reasoning_content` of the assistant's turns is taken. Arguments of a call that are no JSON object "
        "are shown to the model as a text",
        stream="",
        stream_options="`include_usage`; what else is in it is ignored",
        n="1 to 16 answers",
        max_tokens="the older name of `max_completion_tokens`; 1 or more. Both, with different numbers, "
        "are refused",
        max_completion_tokens="1 or more, reasoning included; as much as the context allows where it is "
        "missing",
        stop=_STOPS,
        logprobs="of the answer; reasoning and calls have none",
        top_logprobs="0 to 20",
        tools=f"{_MOST_TOOLS}; types `function` and `custom`. `strict` functions are held to their schema, "
        "custom tools to their grammar: see below",
        tool_choice="`auto`, `none`, `required`, a tool, `allowed_tools`",
        parallel_tool_calls="false: the answer ends after its first call",
        response_format="`text`, `json_object`, `json_schema`; ours: `regex` and `grammar` (Lark), each with "
        "its text under its own name",
        reasoning_effort="a bound for reasoning, see below",
        reasoning_budget="an extra of ours: the most tokens of reasoning, 0 or more; goes before "
        "`reasoning_effort`",
    ),
    *_TEMPERATURE,
    *_PENALTIES,
    *_works(top_k=f"an extra of ours: {_TOP_K}"),
    *_EXTRAS,
    _refused("functions", "use `tools`", []),
    _refused("function_call", "use `tool_choice`", "auto", "none"),
    _refused("audio", "the model writes text"),
    _refused("modalities", "the model writes text", ["text"]),
    _refused("web_search_options", "the server searches nothing"),
    _refused("moderation", "nothing is moderated"),
    *_ignored(_STATELESS, "store", "metadata", "user", "safety_identifier"),
    *_ignored(_AUTOMATIC, "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"),
    *_ignored(_ONE_SPEED, "service_tier", "prediction"),
    *_ignored("the model knows no such wish", "verbosity"),
)

COMPLETIONS = (
    *_works(
        model=_ANY_MODEL,
        prompt="a text, token ids, or several of either: at most 16 answers together",
        stream="",
        stream_options="`include_usage`; what else is in it is ignored",
        n="1 to 16 answers",
        max_tokens="1 or more; 16 where it is missing",
        stop=_STOPS,
        logprobs="0 to 20 likeliest tokens beside each chosen one",
    ),
    *_TEMPERATURE,
    *_PENALTIES,
    *_works(top_k=f"an extra of ours: {_TOP_K}"),
    *_EXTRAS,
    _refused("best_of", "use `n`", 1),
    _refused("echo", "the prompt is not repeated", False),
    _refused("suffix", "the model does not fill in", ""),
    *_ignored(_STATELESS, "user"),
)

RESPONSES = (
    *_works(
        model=_ANY_MODEL,
        input="a text, or up to 20,000 items: messages, `reasoning`, `function_call`, `custom_tool_call` and "
        "their outputs, `item_reference`. Text only; a picture in a tool's output becomes a note to the "
        "model",
        instructions="not taken over from the response before",
        previous_response_id="of a response that is still stored",
        store="true where it is missing; the newest 1,000 responses, 50 MB at most, are kept in memory until "
        "the server ends",
        metadata="up to 16 texts by their names; given back",
        include="up to 32: `reasoning.encrypted_content` and `message.output_text.logprobs`; others bring "
        "nothing",
        stream="",
        max_output_tokens="1 or more, reasoning included; as much as the context allows where it is missing",
        reasoning="`effort`, see below; `summary` and what else is in it is ignored: reasoning comes whole",
        text="`format`: `text`, `json_object`, `json_schema`; `verbosity` is ignored",
        tools=f"{_MOST_TOOLS}; types `function`, `custom`, `namespace`; `web_search` is left out, others are "
        "refused. `strict` functions are held to their schema, custom tools to their grammar: see below",
        tool_choice="`auto`, `none`, `required`, a tool, `allowed_tools`",
        parallel_tool_calls="false: the answer ends after its first call",
        top_logprobs="0 to 20",
        stop=f"an extra of ours: {_STOPS}",
        reasoning_budget="an extra of ours: the most tokens of reasoning, 0 or more; goes before "
        "`reasoning.effort`",
    ),
    *_TEMPERATURE,
    *_PENALTIES,
    *_works(top_k=f"an extra of ours: {_TOP_K}"),
    *_EXTRAS,
    _refused("background", "responses are not run in the background", False),
    _refused("conversation", "use `previous_response_id`"),
    _refused("prompt", "no templates are kept here"),
    _refused("truncation", "shorten the input yourself", "disabled"),
    _refused("context_management", "shorten the input yourself", []),
    _refused("moderation", "nothing is moderated"),
    *_ignored(_STATELESS, "user", "safety_identifier", "client_metadata", "access_programs"),
    *_ignored(_AUTOMATIC, "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"),
    *_ignored(_ONE_SPEED, "service_tier"),
    *_ignored("there is nothing that it could change", "stream_options", "background_options", "image"),
    *_ignored("it bounds tools of the server, which has none", "max_tool_calls"),
)

_PROMPT_OF_MESSAGES = _works(
    model=_ANY_MODEL,
    messages="1 to 100,000; roles user, assistant, system; blocks `text`, `thinking`, `tool_use`, "
    "`tool_result`. `redacted_thinking` is left out; a picture in a `tool_result` becomes a note to the "
    "model. The last message must not be the assistant's",
    system="a text or blocks; lines `x-anthropic-…:` are left out of the prompt, since they change with each "
    "request and the cache would never be of use",
    tools=f"{_MOST_TOOLS}, each with an `input_schema`, to which `strict` ones are held: see below; tools of "
    "Anthropic's own are refused",
    tool_choice="`auto`, `any`, `tool`, `none`; `disable_parallel_tool_use` ends the answer after its "
    "first call",
    thinking="`enabled` with `budget_tokens` of 1 or more, `adaptive`, `disabled`; `display`. Without it the "
    "model does not think",
    output_config="`effort`, see below, with `adaptive` thinking; `format`: `json_schema`",
)
_REST_OF_MESSAGES = (
    _refused("speed", "there is one speed", "standard"),
    _refused("compaction", "shorten the conversation yourself"),
    *_ignored("features need not be asked for", "betas"),
    *_ignored("nothing is billed", "billing_policy"),
    *_ignored(_AUTOMATIC, "cache_control"),
    *_ignored("there is one user and one workspace", "user_profile_id", "workspace_id"),
    *_ignored("the prompt is never changed", "context_management"),
)

MESSAGES = (
    *_PROMPT_OF_MESSAGES,
    *_works(
        max_tokens="1 or more, thinking included",
        stream="",
        stop_sequences=_STOPS,
    ),
    *_TEMPERATURE,
    *_works(top_k=_TOP_K),
    *_EXTRAS,
    _refused("container", "the server runs nothing"),
    _refused("mcp_servers", "the server calls no tools", []),
    _refused("thread", "no threads are kept here"),
    *_REST_OF_MESSAGES,
    *_ignored(_STATELESS, "metadata", "diagnostics"),
    *_ignored(_ONE_SPEED, "service_tier"),
    *_ignored("one model is served, on these boxes", "inference_geo", "fallbacks", "fallback_credit_token"),
)

COUNT_TOKENS = (
    *_PROMPT_OF_MESSAGES,
    *_REST_OF_MESSAGES,
    *_ignored("the server calls no tools", "mcp_servers"),
)

TABLES: Mapping[str, tuple[Field, ...]] = {
    "POST /v1/chat/completions": CHAT,
    "POST /v1/completions": COMPLETIONS,
    "POST /v1/responses": RESPONSES,
    "POST /v1/messages": MESSAGES,
    "POST /v1/messages/count_tokens": COUNT_TOKENS,
}

# What another of the APIs calls a field, where the spelling does not tell.
_SAME_ELSEWHERE: Mapping[str, tuple[str, ...]] = {
    "messages": ("input", "prompt"),
    "input": ("messages", "prompt"),
    "prompt": ("messages",),
    "system": ("instructions", "messages"),
    "instructions": ("system", "messages"),
    "stop": ("stop_sequences",),
    "stop_sequences": ("stop",),
    "reasoning_effort": ("reasoning", "thinking"),
    "reasoning": ("reasoning_effort", "thinking"),
    "thinking": ("reasoning_effort", "reasoning"),
    "response_format": ("text", "output_config"),
}


def wanted(document: Mapping[str, Any], table: tuple[Field, ...]) -> dict[str, Any]:
    """The fields of a request that do something; null says as little as a field that is not there.

    Raises:
        ApiError: a field that is refused, or that no client of this API knows.
    """
    known = {field.name: field for field in table}
    found = {}
    for name, value in document.items():
        field = known.get(name)
        if field is None:
            raise invalid(name[:100], f"no such field{_advice(name, known)}")
        if value is None or field.treatment == "ignored":
            continue
        if field.treatment == "works":
            found[name] = value
        elif not any(value == passes and type(value) is type(passes) for passes in field.but):
            raise invalid(name, f"is not supported: {field.note}")
    return found


def _advice(name: str, known: Mapping[str, Field]) -> str:
    working = [field.name for field in known.values() if field.treatment == "works"]
    close = [other for other in _SAME_ELSEWHERE.get(name, ()) if other in working]
    close = close or get_close_matches(name[:100].lower(), working, n=1)
    return f", did you mean {close[0]}?" if close else ""
