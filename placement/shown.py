"""What was found, for an error message: a glimpse, however large or strange it is."""

from __future__ import annotations

MOST_SHOWN = 80
"""Characters of a file's content that a message repeats."""


def shown(value: object) -> str:
    """`value` as Python writes it, the start of it where that is long."""
    # A long text is cut before it is quoted: quoting a hundred megabytes takes as much again.
    if isinstance(value, str | bytes) and len(value) > MOST_SHOWN:
        return f"{value[:MOST_SHOWN]!r}…"
    try:
        text = repr(value)
    except ValueError:  # Python writes no integer of more than some thousand digits.
        return "a number of thousands of digits"
    except (RecursionError, MemoryError):
        return "something nested too deeply to show"
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}…"
