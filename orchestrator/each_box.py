"""The same for several boxes at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

from placement.errors import PotluckError

MOST_AT_ONCE = 32


class Named(Protocol):
    """A box, by whatever is known of it."""

    @property
    def name(self) -> str: ...


Box = TypeVar("Box", bound=Named)
Result = TypeVar("Result")


def each_box(
    boxes: Sequence[Box], function: Callable[[Box], Result], at_once: int = MOST_AT_ONCE
) -> tuple[dict[str, Result], dict[str, PotluckError]]:
    """Do something on boxes side by side.

    Returns:
        By name and in the order of `boxes`: what it gave, and the errors that a user should see.
    """

    def attempt(box: Box) -> Result | PotluckError:
        try:
            return function(box)
        except PotluckError as error:
            return error

    with ThreadPoolExecutor(max(1, min(len(boxes), at_once))) as pool:
        results = dict(zip((box.name for box in boxes), pool.map(attempt, boxes), strict=True))
    failed = {name: result for name, result in results.items() if isinstance(result, PotluckError)}
    done = {name: result for name, result in results.items() if not isinstance(result, PotluckError)}
    return done, failed
