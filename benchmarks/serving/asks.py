"""What users ask: prompts and answers of mixed lengths, from a seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Lengths:
    """In tokens: lognormal around a median, cut off at both ends."""

    median: int
    least: int
    most: int
    spread: float = 0.8

    def draw(self, random: np.random.Generator) -> int:
        drawn = self.median * float(np.exp(self.spread * random.standard_normal()))
        return int(min(max(drawn, self.least), self.most))


@dataclass(frozen=True, slots=True)
class Ask:
    """One request: a prompt as token ids, so many tokens wanted, and the seed that chooses them."""

    prompt: tuple[int, ...]
    max_tokens: int
    seed: int
    temperature: float = 0.0


@dataclass(frozen=True, slots=True)
class Asks:
    """Any number of asks; the same number is always the same one.

    Attributes:
        text: token ids that prompts are cut from; empty for tokens by lot, all below `vocab`.
    """

    seed: int
    prompts: Lengths
    answers: Lengths
    text: Sequence[int] = ()
    vocab: int = 2000
    temperature: float = 0.0

    def ask(self, number: int) -> Ask:
        random = np.random.default_rng([self.seed, number])
        length = self.prompts.draw(random)
        if self.text:
            start = int(random.integers(0, max(1, len(self.text) - length)))
            prompt = tuple(self.text[start : start + length])
        else:
            prompt = tuple(random.integers(3, self.vocab, length).tolist())
        return Ask(prompt, self.answers.draw(random), int(random.integers(2**31)), self.temperature)
