"""What a process on another box says at its end."""

from __future__ import annotations

import sys

import pytest

from orchestrator.probe.child import last_words, running
from placement.errors import BoxUnreachable

RAISES = """
import sys
print("measuring", file=sys.stderr)
def inner():
    raise ValueError("no such link:\\n  eth7\\nsee above")
try:
    inner()
except ValueError as error:
    raise RuntimeError("the link\\n\\nis not there") from error
"""


def test_an_exception_is_told_whole_and_with_its_place() -> None:
    with (
        pytest.raises(
            BoxUnreachable, match=r"^attic: its probe ended: RuntimeError: the link is not there \("
        ),
        running("attic", [sys.executable, "-c", RAISES]) as child,
    ):
        child.line()


@pytest.mark.parametrize(
    ("code", "told"), [(255, "^attic: do this: no route"), (1, "its probe ended: no route")]
)
def test_what_ssh_says_of_a_box_is_told_with_a_remedy(code: int, told: str) -> None:
    with (
        pytest.raises(BoxUnreachable, match=told),
        running(
            "attic",
            ["sh", "-c", f"echo no route >&2; exit {code}"],
            why_unreachable=lambda said: f"attic: do this: {said}",
        ) as child,
    ):
        child.line()


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ([], "it said nothing"),
        (["measuring", "", "no room left"], "no room left"),
        (
            [
                "Traceback (most recent call last):",
                '  File "/venv/orchestrator/probe/head.py", line 12, in main',
                "    raise KeyError(name)",
                "KeyError: 'w1'",
            ],
            "KeyError: 'w1' (head.py:12)",
        ),
        (
            [
                '  File "/x/y.py", line 3, in f',
                "    1 / 0",
                "    ~~^~~",
                "ValueError: several",
                "  lines of it",
                "and an end",
            ],
            "ValueError: several lines of it and an end (y.py:3)",
        ),
        (['  File "/x/y.py", line 3', "    if"], "if (y.py:3)"),
    ],
)
def test_last_words_are_one_line(lines: list[str], told: str) -> None:
    assert last_words(lines) == told
