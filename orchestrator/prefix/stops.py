"""Where a prompt's passes end so that its text can be kept there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from orchestrator.prefix.cache import LEAST_TOKENS, Resumed
from placement.kv_size import pass_grid

EVERY_TOKENS = 4096
"""Between boundaries of a long prompt: docs/prefix-cache.md has what one takes."""


def stops(resumed: Resumed, prompt_tokens: int, ends: Iterable[int] = ()) -> tuple[int, ...]:
    """Lengths at which a prompt is worth keeping while it is read, ascending.

    Args:
        resumed: what was kept of the prompt.
        ends: lengths at which the caller knows that other texts may part from this one, such as the end of
            the last message, before what asks for the answer.
    """
    wanted = {*ends, *range(EVERY_TOKENS, prompt_tokens, EVERY_TOKENS)}
    # Two texts have parted here, so a third one may.
    if resumed.shared - resumed.matched >= LEAST_TOKENS:
        wanted.add(resumed.shared)
    return tuple(sorted(stop for stop in wanted if resumed.matched < stop <= prompt_tokens))


def passes(start: int, stop: int, most_rows: int, stops: Iterable[int] = ()) -> Iterator[tuple[int, int]]:
    """Beginnings and ends of the passes that read a prompt from `start` to `stop`, each ending at `stops`.

    A pass may end early, so that a sequence that goes on from a kept prefix holds no more pages than
    `SequenceSize` counts.
    """
    grid = pass_grid(most_rows)
    for end in sorted({end for end in stops if start < end < stop} | {stop}):
        while start < end:
            following = min(end, start - start % grid + most_rows)
            yield start, following
            start = following
