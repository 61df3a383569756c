"""The requests of Anthropic's messages."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from orchestrator.api.validated import Effort, Extras, Part

Json = Any


class TextBlock(Part):
    type: Literal["text"]
    text: str


class PictureBlock(Part):
    """What the model cannot read; taken apart so that it can be refused by its name."""

    type: Literal["image", "document", "search_result"]


class ThinkingBlock(Part):
    type: Literal["thinking"]
    thinking: str
    signature: str = ""


class RedactedBlock(Part):
    type: Literal["redacted_thinking"]


class ToolUseBlock(Part):
    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Json]


ResultContent = str | list[Annotated[TextBlock | PictureBlock, Field(discriminator="type")]]


class ToolResultBlock(Part):
    type: Literal["tool_result"]
    tool_use_id: str
    content: ResultContent | None = None
    is_error: bool | None = None


UserContent = str | list[Annotated[TextBlock | PictureBlock | ToolResultBlock, Field(discriminator="type")]]
AssistantContent = (
    str
    | list[Annotated[TextBlock | ThinkingBlock | RedactedBlock | ToolUseBlock, Field(discriminator="type")],]
)


class UserMessage(Part):
    role: Literal["user"]
    content: UserContent


class AssistantMessage(Part):
    role: Literal["assistant"]
    content: AssistantContent


class SystemMessage(Part):
    role: Literal["system"]
    content: str | list[TextBlock]


Message = Annotated[UserMessage | AssistantMessage | SystemMessage, Field(discriminator="role")]


class Tool(Part):
    """`type` is nothing or "custom" for tools of the client; Anthropic's own have others."""

    name: str
    type: str | None = None
    description: str | None = None
    input_schema: dict[str, Json] | None = None
    strict: bool | None = None


class Choice(Part):
    type: Literal["auto", "any", "none"]
    disable_parallel_tool_use: bool | None = None


class NamedChoice(Part):
    type: Literal["tool"]
    name: str
    disable_parallel_tool_use: bool | None = None


class ThinkingEnabled(Part):
    type: Literal["enabled"]
    budget_tokens: int = Field(ge=1)
    display: Literal["summarized", "omitted"] | None = None


class ThinkingAdaptive(Part):
    type: Literal["adaptive"]
    display: Literal["summarized", "omitted"] | None = None


class ThinkingDisabled(Part):
    type: Literal["disabled"]


Thinking = Annotated[ThinkingEnabled | ThinkingAdaptive | ThinkingDisabled, Field(discriminator="type")]


class SchemaFormat(Part):
    type: Literal["json_schema"]
    schema_: dict[str, Json] = Field(alias="schema")


class OutputConfig(Part):
    effort: Effort | None = None
    format: SchemaFormat | None = None


class Prompted(Part):
    """What `messages` and `count_tokens` have in common."""

    model: str | None = None
    messages: list[Message] = Field(min_length=1, max_length=100_000)
    system: str | list[TextBlock] | None = None
    tools: list[Tool] = Field(default_factory=list, max_length=4096)
    tool_choice: Annotated[Choice | NamedChoice, Field(discriminator="type")] | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None


class MessagesBody(Prompted, Extras):
    max_tokens: int = Field(ge=1)
    stop_sequences: list[str] = Field(default_factory=list)


class CountBody(Prompted):
    pass
