"""Texts that end an answer, found while it arrives."""

from __future__ import annotations

from collections.abc import Sequence


class StopTexts:
    """Searches several texts at once and holds back only what may be the beginning of one.

    The text that is complete first ends the answer; of two that are complete at once, the longer one.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = tuple(text for text in texts if text)
        self._borders = tuple(map(_borders, self._texts))
        self._firsts = frozenset(text[0] for text in self._texts)
        # Characters of each text that the end of the answer so far matches (Knuth, Morris and Pratt, 1977).
        self._matched = [0] * len(self._texts)
        self._held = ""
        self.found: str | None = None
        """The text that was found; nothing is taken after it."""

    def push(self, text: str) -> str:
        """What is certain to stand before any of the texts."""
        if self.found is not None:
            return ""
        if not self._held and self._firsts.isdisjoint(text):
            return text
        both = self._held + text
        for at in range(len(self._held), len(both)):
            longest = self._step(both[at])
            if longest is not None:
                self.found, self._held = longest, ""
                return both[: at + 1 - len(longest)]
        held = max(self._matched)
        cut = len(both) - held
        self._held = both[cut:]
        return both[:cut]

    def finish(self) -> str:
        """What was held back."""
        held, self._held = self._held, ""
        self._matched = [0] * len(self._texts)
        return held

    def _step(self, character: str) -> str | None:
        """The longest text that is complete with this character."""
        longest: str | None = None
        for number, text in enumerate(self._texts):
            matched = self._matched[number]
            while matched and text[matched] != character:
                matched = self._borders[number][matched - 1]
            matched += text[matched] == character
            if matched == len(text):
                matched = self._borders[number][matched - 1]
                if longest is None or len(text) > len(longest):
                    longest = text
            self._matched[number] = matched
        return longest


def _borders(text: str) -> list[int]:
    """Of each beginning of a text: how much of its end is its beginning again, itself left out."""
    borders = [0] * len(text)
    matched = 0
    for at in range(1, len(text)):
        while matched and text[matched] != text[at]:
            matched = borders[matched - 1]
        matched += text[matched] == text[at]
        borders[at] = matched
    return borders
