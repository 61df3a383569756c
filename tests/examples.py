"""How many examples a test tries that is dearer than others, or cheaper."""

from __future__ import annotations

from hypothesis import settings

DAILY = 40
"""Of a test that says nothing."""


def examples(daily: int) -> settings:
    """A decorator: so many where others have `DAILY`, and as many times more in the profile for a night."""
    return settings(max_examples=max(1, daily * settings().max_examples // DAILY))
