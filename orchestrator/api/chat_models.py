"""The request of OpenAI's chat completions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from orchestrator.api.validated import Effort, Part, Penalised

Json = Any


class TextPart(Part):
    type: Literal["text"]
    text: str


class RefusalPart(Part):
    type: Literal["refusal"]
    refusal: str


class PicturePart(Part):
    """Taken apart so that it can be refused by its name."""

    type: Literal["image_url", "input_audio", "file", "video_url"]


Content = str | list[Annotated[TextPart | RefusalPart | PicturePart, Field(discriminator="type")]]


class PlainMessage(Part):
    role: Literal["system", "developer", "user"]
    content: Content


class FunctionOfCall(Part):
    name: str
    arguments: str


class CustomOfCall(Part):
    name: str
    input: str


class FunctionCall(Part):
    id: str
    type: Literal["function"] = "function"
    function: FunctionOfCall


class CustomCall(Part):
    id: str
    type: Literal["custom"]
    custom: CustomOfCall


class AssistantMessage(Part):
    role: Literal["assistant"]
    content: Content | None = None
    refusal: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[FunctionCall | CustomCall] | None = None


class ToolMessage(Part):
    role: Literal["tool"]
    content: Content
    tool_call_id: str


Message = Annotated[PlainMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]


class FunctionOfTool(Part):
    name: str
    description: str | None = None
    parameters: dict[str, Json] | None = None
    strict: bool | None = None


class GrammarOfFormat(Part):
    definition: str
    syntax: Literal["lark", "regex"]


class FormatOfCustom(Part):
    type: Literal["text", "grammar"]
    grammar: GrammarOfFormat | None = None


class CustomOfTool(Part):
    name: str
    description: str | None = None
    format: FormatOfCustom | None = None


class FunctionTool(Part):
    type: Literal["function"]
    function: FunctionOfTool


class CustomTool(Part):
    type: Literal["custom"]
    custom: CustomOfTool


Tool = Annotated[FunctionTool | CustomTool, Field(discriminator="type")]


class Named(Part):
    name: str


class FunctionChoice(Part):
    type: Literal["function"]
    function: Named


class CustomChoice(Part):
    type: Literal["custom"]
    custom: Named


class Allowed(Part):
    mode: Literal["auto", "required"]
    tools: list[Annotated[FunctionChoice | CustomChoice, Field(discriminator="type")]]


class AllowedChoice(Part):
    type: Literal["allowed_tools"]
    allowed_tools: Allowed


Choice = (
    Literal["auto", "none", "required"]
    | Annotated[FunctionChoice | CustomChoice | AllowedChoice, Field(discriminator="type")]
)


class SchemaOfFormat(Part):
    name: str = ""
    schema_: dict[str, Json] = Field(default_factory=dict, alias="schema")


class PlainFormat(Part):
    type: Literal["text", "json_object"]


class SchemaFormat(Part):
    type: Literal["json_schema"]
    json_schema: SchemaOfFormat


class RegexFormat(Part):
    type: Literal["regex"]
    regex: str


class GrammarFormat(Part):
    type: Literal["grammar"]
    grammar: str


Format = Annotated[
    PlainFormat | SchemaFormat | RegexFormat | GrammarFormat,
    Field(discriminator="type"),
]


class StreamOptions(Part):
    include_usage: bool | None = None


class ChatBody(Penalised):
    model: str | None = None
    messages: list[Message] = Field(min_length=1, max_length=10_000)
    stream_options: StreamOptions | None = None
    n: int = Field(default=1, ge=1, le=16)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    tools: list[Tool] = Field(default_factory=list, max_length=4096)
    tool_choice: Choice | None = None
    parallel_tool_calls: bool = True
    response_format: Format | None = None
    reasoning_effort: Effort | None = None
    reasoning_budget: int | None = Field(default=None, ge=0)
