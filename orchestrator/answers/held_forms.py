"""What the parts of held calls may be, ready to be followed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Set

from orchestrator.answers.held_tools import HeldTool, ToolError
from orchestrator.answers.output_form import FormMatcher, OutputForms, Piece
from orchestrator.answers.tags import END_OF_FUNCTION, END_OF_PARAMETER, PARAMETER
from orchestrator.serving.request import OutputForm
from placement.errors import InputError
from placement.files.quote import quote

CLOSED = f"\n{END_OF_PARAMETER}>"
# A tag ends before anything else comes, so that what comes behind it can be held to a form from its start.
_IN_TAG = re.compile(r"[^<>\n\ufffd]+|[^<>\n\ufffd]*>\n?")
# Behind what may be the end of a free text: white space, and no tag that would make it the end.
_BLANK = r"[ \t\r\n]"
_GOES_ON = (
    rf"/{_BLANK}{{0,24}}[^ \t\r\n](.|\n)*/"
    rf" & ~/{_BLANK}*<(parameter|\/parameter|function|\/function|tool_call>|\/tool_call)(.|\n)*/"
)


class HeldForms:
    """Of one answer's tools."""

    def __init__(self, tools: Mapping[str, HeldTool], forms: OutputForms) -> None:
        """Raises ToolError for a form that is none."""
        self.tools = tools
        self.in_tag = forms.tokens_like(_IN_TAG)
        """A mask of what goes on in a tag."""
        self._forms = forms
        # By tool and argument; an answer copies one, so that none of these has begun.
        self._values: dict[tuple[str, str], FormMatcher] = {}
        for name, tool in tools.items():
            for key, form in tool.forms.items():
                if form is None:
                    continue
                try:
                    self._values[name, key] = forms.in_call(_value(form, tool))
                except InputError as error:
                    where = "" if tool.takes_one else f", parameter {quote(key)}"
                    raise ToolError(name, f"the tool {quote(name)}{where}: {error}") from error

    def value(self, name: str, key: str) -> FormMatcher | None:
        """An argument and its end; None for a text that is free."""
        found = self._values.get((name, key))
        return None if found is None else found.copy()

    def between(self, name: str, complete: Set[str]) -> FormMatcher:
        """An argument that has not come, or the call's end if no more have to come."""
        return self._forms.in_call((OutputForm("regex", self._next(name, complete)),))

    def behind(self, name: str, complete: Set[str]) -> FormMatcher:
        """The same behind what may be the end of a text, or what goes on with the text.

        Args:
            complete: names of the arguments that have come, the text among them.
        """
        tag = self._next(name, complete).replace("/", r"\/")
        grammar = f"start: TAG | TEXT\nTAG: /{tag}/\nTEXT: {_GOES_ON}"
        return self._forms.in_call((OutputForm("grammar", grammar),))

    def _next(self, name: str, complete: Set[str]) -> str:
        tool = self.tools[name]
        tags = [f"{PARAMETER}={re.escape(key)}>" for key in tool.forms if key not in complete]
        if tool.required <= complete:
            tags.append(f"{END_OF_FUNCTION}>")
        return f"\n?({'|'.join(tags)})"


def _value(form: OutputForm, tool: HeldTool) -> tuple[Piece, ...]:
    return ("\n", form, f"{CLOSED}\n{END_OF_FUNCTION}>" if tool.takes_one else CLOSED)
