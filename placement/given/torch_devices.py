"""What torch calls the cards of one box: cuda, cuda:1, cuda:2."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count


def next_torch_device(backend: str, taken: Iterable[str]) -> str:
    """The name of one more card: the lowest number of its backend that nobody has.

    Args:
        backend: such as cuda; each one counts its own cards.
        taken: names that other cards of the box have. Without a number it is the first card.
    """
    used = {name if ":" in name else f"{name}:0" for name in taken}
    number = next(number for number in count() if f"{backend}:{number}" not in used)
    return f"{backend}:{number}" if number else backend
