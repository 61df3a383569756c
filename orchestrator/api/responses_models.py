"""The request of OpenAI's responses, and the items that conversations consist of."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, TypeAdapter

from orchestrator.api.validated import Effort, Part, Penalised

Json = Any


class TextPart(Part):
    type: Literal["input_text", "output_text", "text"]
    text: str


class RefusalPart(Part):
    type: Literal["refusal"]
    refusal: str


class PicturePart(Part):
    """What the model cannot read; taken apart so that it can be refused by its name."""

    type: Literal["input_image", "input_file", "input_audio"]


MessagePart = Annotated[TextPart | RefusalPart | PicturePart, Field(discriminator="type")]


class MessageItem(Part):
    type: Literal["message"] = "message"
    role: Literal["user", "system", "developer", "assistant"]
    content: str | list[MessagePart]
    id: str | None = None


class ReasoningText(Part):
    text: str


class ReasoningItem(Part):
    type: Literal["reasoning"]
    id: str | None = None
    summary: list[ReasoningText] = Field(default_factory=list)
    content: list[ReasoningText] | None = None
    encrypted_content: str | None = None


class CallItem(Part):
    type: Literal["function_call"]
    id: str | None = None
    call_id: str
    name: str
    namespace: str | None = None
    arguments: str


class CustomCallItem(Part):
    type: Literal["custom_tool_call"]
    id: str | None = None
    call_id: str
    name: str
    namespace: str | None = None
    input: str


class OutputItem(Part):
    type: Literal["function_call_output", "custom_tool_call_output"]
    id: str | None = None
    call_id: str
    output: str | list[MessagePart]


class ReferenceItem(Part):
    type: Literal["item_reference"]
    id: str


def _item_type(item: Any) -> Any:
    """A message need not say that it is one."""
    return item.get("type", "message") if isinstance(item, dict) else getattr(item, "type", None)


Item = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[ReasoningItem, Tag("reasoning")]
    | Annotated[CallItem, Tag("function_call")]
    | Annotated[CustomCallItem, Tag("custom_tool_call")]
    | Annotated[OutputItem, Tag("function_call_output")]
    | Annotated[OutputItem, Tag("custom_tool_call_output")]
    | Annotated[ReferenceItem, Tag("item_reference")],
    Discriminator(_item_type),
]
ITEMS: TypeAdapter[list[Any]] = TypeAdapter(list[Item])


class FunctionTool(Part):
    type: Literal["function"]
    name: str
    description: str | None = None
    parameters: dict[str, Json] | None = None
    strict: bool | None = None


class FormatOfCustom(Part):
    type: Literal["text", "grammar"]
    definition: str | None = None
    syntax: Literal["lark", "regex"] | None = None


class CustomTool(Part):
    type: Literal["custom"]
    name: str
    description: str | None = None
    format: FormatOfCustom | None = None


class NamespaceTool(Part):
    type: Literal["namespace"]
    name: str
    tools: list[Annotated[FunctionTool | CustomTool, Field(discriminator="type")]]


class SearchTool(Part):
    """Codex offers it unasked, so it is left out and not refused."""

    type: Literal["web_search", "web_search_preview", "web_search_2025_08_26"]


Tool = Annotated[FunctionTool | CustomTool | NamespaceTool | SearchTool, Field(discriminator="type")]


class NamedChoice(Part):
    type: Literal["function", "custom"]
    name: str
    namespace: str | None = None


class AllowedChoice(Part):
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: list[NamedChoice]


Choice = (
    Literal["auto", "none", "required"] | Annotated[NamedChoice | AllowedChoice, Field(discriminator="type")]
)


class PlainFormat(Part):
    type: Literal["text", "json_object"]


class SchemaFormat(Part):
    type: Literal["json_schema"]
    name: str = ""
    schema_: dict[str, Json] = Field(alias="schema")


class TextConfig(Part):
    format: Annotated[PlainFormat | SchemaFormat, Field(discriminator="type")] | None = None


class Reasoning(Part):
    effort: Effort | None = None


class ResponseBody(Penalised):
    model: str | None = None
    input: str | Annotated[list[Item], Field(max_length=20_000)] = Field(default_factory=list)
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool = True
    metadata: dict[str, str] = Field(default_factory=dict, max_length=16)
    include: list[str] = Field(default_factory=list, max_length=32)
    max_output_tokens: int | None = Field(default=None, ge=1)
    reasoning: Reasoning | None = None
    reasoning_budget: int | None = Field(default=None, ge=0)
    text: TextConfig | None = None
    tools: list[Tool] = Field(default_factory=list, max_length=4096)
    tool_choice: Choice | None = None
    parallel_tool_calls: bool = True
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
