"""Lines for people."""

from __future__ import annotations

from orchestrator.cli.output import once


def test_what_was_said_is_not_said_again() -> None:
    said: list[str] = []
    note = once(said.append)
    for line in ("missing: attic", "planning", "missing: attic", "up"):
        note(line)
    assert said == ["missing: attic", "planning", "up"]
