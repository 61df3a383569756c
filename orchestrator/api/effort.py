"""What words for effort mean in tokens of reasoning."""

from __future__ import annotations

from collections.abc import Mapping

REASONING_TOKENS: Mapping[str, int | None] = {
    "none": 0,
    "minimal": 512,
    "low": 2_048,
    "medium": 8_192,
    "high": 32_768,
    "xhigh": None,
    "max": None,
}
"""None: no bound but that of the whole answer."""


def reasoning_tokens(effort: str | None, budget: int | None = None) -> int | None:
    """The bound of reasoning: `budget` where one is given, or else what `effort` stands for."""
    if budget is not None:
        return budget
    return None if effort is None else REASONING_TOKENS[effort]
