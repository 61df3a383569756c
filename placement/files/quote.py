"""What was found, or what another library says of it, for a message of one line: a glimpse of it."""

from __future__ import annotations

MOST_QUOTED = 80
"""Characters of a file's content that a message repeats."""
MOST_OF_LINE = 160
"""Characters of somebody else's words that a message repeats."""


def first_line(error: BaseException) -> str:
    """What an error of a library says, which may go on for pages; its type where it says nothing."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def last_line(text: str) -> str:
    """What a program complained of last, "" where it said nothing."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def quote(value: object) -> str:
    """`value` as Python writes it, the start of it where that is long."""
    # A long text is cut before it is quoted: quoting a hundred megabytes takes as much again.
    if isinstance(value, str | bytes) and len(value) > MOST_QUOTED:
        return f"{value[:MOST_QUOTED]!r}…"
    try:
        text = repr(value)
    except ValueError:  # Python writes no integer of more than some thousand digits.
        return "a number of thousands of digits"
    except (RecursionError, MemoryError):
        return "something nested too deeply to show"
    return text if len(text) <= MOST_QUOTED else f"{text[:MOST_QUOTED]}…"


def one_line(text: str) -> str:
    """`text` without line breaks and what cannot be printed, the start of it where that is long."""
    # Cut first: what is not shown need not be taken apart.
    start = text[: 10 * MOST_OF_LINE]
    line = " ".join("".join(character if character.isprintable() else " " for character in start).split())
    return line if len(start) == len(text) and len(line) <= MOST_OF_LINE else f"{line[:MOST_OF_LINE]}…"
