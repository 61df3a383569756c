"""What takes a model's text apart while it arrives, chosen by its chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from orchestrator.answers.held_tools import HeldTool
from orchestrator.answers.parsed import Parsed
from orchestrator.answers.tagged_parser import TaggedParser
from orchestrator.answers.tags import FUNCTION, THINK, TOOL_CALL
from orchestrator.serving.answer import Text


class Parser(Protocol):
    """Takes a model's text apart. The events are the same, put together, however the text is cut."""

    @property
    def markers(self) -> tuple[str, ...]:
        """Texts that it has to see even where they are special tokens."""
        ...

    @property
    def in_reasoning(self) -> bool:
        """Whether what comes next is reasoning, as far as the text so far tells."""
        ...

    @property
    def decided(self) -> int:
        """Characters of the text that no later event consists of."""
        ...

    def push(self, text: str) -> list[Parsed]:
        """What is certain with this piece of text."""
        ...

    def finish(self, *, cut: bool = False) -> list[Parsed]:
        """What was held back.

        Args:
            cut: the text was cut off, as by a limit of tokens. A call that was not complete then never ends.
        """
        ...


def choose_parser(
    template: str | None,
    prompt: str,
    tools: Sequence[Mapping[str, Any]] = (),
    call_prefix: str = "call_",
    held: Mapping[str, HeldTool] | None = None,
) -> Parser:
    """The parser for a model's answer, by what its chat template speaks of.

    Args:
        template: its text; None for a text to continue without one.
        prompt: what the template gave. Where it ends within <think>, the answer begins inside reasoning.
        tools: of OpenAI's form; none where the request hides them.
        call_prefix: ids of calls begin with it; what makes them unique beyond the answer.
        held: those of the tools whose calls are held to a form.
    """
    reasons = template is not None and THINK in template
    calls = tools if template is not None and TOOL_CALL in template and FUNCTION in template else ()
    if not reasons and not calls:
        return PlainParser()
    inside = reasons and prompt.rstrip().endswith(THINK)
    return TaggedParser(calls, inside=inside, call_prefix=call_prefix, held=held)


class PlainParser:
    """All text is the answer."""

    markers: tuple[str, ...] = ()
    in_reasoning = False

    def __init__(self) -> None:
        self._end = 0

    @property
    def decided(self) -> int:
        return self._end

    def push(self, text: str) -> list[Parsed]:
        if not text:
            return []
        start, self._end = self._end, self._end + len(text)
        return [Parsed(Text(text), start, self._end)]

    def finish(self, *, cut: bool = False) -> list[Parsed]:
        return []
