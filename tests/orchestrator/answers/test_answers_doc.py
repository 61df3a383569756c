"""docs/answers.md says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from orchestrator.answers.loops import IN_ANSWER, IN_REASONING, MOST_BREAKS, MOST_PERIOD
from orchestrator.serving.answer import CallEnded, CallStarted, Reasoning, Text
from tests.orchestrator.answers.tools import TOOLS, parse

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "answers.md").read_text(encoding="utf-8")


def test_the_example_gives_the_events_that_the_page_shows() -> None:
    example = re.search(r"\n\n((?:    .+\n)+)", PAGE)
    assert example is not None
    events = parse(re.sub(r"(?m)^    ", "", example.group(1)), TOOLS)
    shown = [event for event in events if isinstance(event, Reasoning | Text | CallStarted | CallEnded)]
    for event in shown:
        fields = ", ".join(
            str(getattr(event, name)) if name == "arguments" else f'"{getattr(event, name)}"'
            for name in event.__slots__
            if name != "logprobs"
        )
        assert f"{type(event).__name__}({fields})".replace("'", '"') in PAGE
    assert len(shown) == 4


def test_the_page_s_modules_are_there() -> None:
    names = set(re.findall(r"`(\w+\.py)`", PAGE))
    assert names == {path.name for path in (ROOT / "orchestrator" / "answers").glob("[!_]*.py")}


def test_the_page_s_limits_of_loops_are_the_code_s() -> None:
    for name, limits in (("reasoning", IN_REASONING), ("answers and calls", IN_ANSWER)):
        assert f"| {name} | {limits.tokens} | {limits.rounds} rounds after the first |" in PAGE
    assert f"up\nto {MOST_PERIOD} tokens" in PAGE
    assert MOST_BREAKS == 2
