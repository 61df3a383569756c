"""Penalties and biases: what they make of the logits of tokens that a text has already."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orchestrator.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True, eq=False)
class Edits:
    """Changes of some tokens' logits: divide (multiply those that are not positive), then add.

    `token_ids`: int64 [n], each once; `divide`, `add`: float32 [n].
    """

    token_ids: NDArray[np.int64]
    divide: NDArray[np.float32]
    add: NDArray[np.float32]

    def apply(self, row: NDArray[np.float32]) -> NDArray[np.float32]:
        """A changed copy of a row."""
        changed = row.copy()
        found = row[self.token_ids]
        scaled = np.where(found > 0, found / self.divide, found * self.divide)
        changed[self.token_ids] = scaled + self.add
        return changed


class Penalties:
    """Counts an answer's tokens; a step costs the same work in Python however long the text is."""

    def __init__(self, params: SamplingParams, prompt: Sequence[int]) -> None:
        self._params = params
        repeats = params.repetition_penalty != 1.0
        known = dict.fromkeys([token_id for token_id, _ in params.logit_bias])
        if repeats:
            known |= dict.fromkeys(prompt)
        self._places = {token_id: place for place, token_id in enumerate(known)}
        self._token_ids = np.array([*known, *([0] * 64)], np.int64)
        self._counts = np.zeros(len(self._token_ids), np.int64)
        self._bias = np.zeros(len(self._token_ids))
        self._in_prompt = np.zeros(len(self._token_ids), bool)
        for token_id, bias in params.logit_bias:
            self._bias[self._places[token_id]] = bias
        if repeats:
            self._in_prompt[[self._places[token_id] for token_id in dict.fromkeys(prompt)]] = True

    def note(self, token_ids: Iterable[int], by: int = 1) -> None:
        """These are the answer's next tokens; `by` -1: they are not after all."""
        for token_id in token_ids:
            # Before the array is looked up: a new token may make a larger one.
            place = self._place(token_id)
            self._counts[place] += by

    def edits(self, drafts: Sequence[int] = ()) -> Edits | None:
        """Behind what was noted and drafts; None for no change."""
        self.note(drafts)
        n, params = len(self._places), self._params
        counts = self._counts[:n]
        seen = counts > 0
        add = self._bias[:n] - params.presence_penalty * seen - params.frequency_penalty * counts
        divide = np.where(seen | self._in_prompt[:n], params.repetition_penalty, 1.0)
        found = Edits(self._token_ids[:n].copy(), divide.astype(np.float32), add.astype(np.float32))
        self.note(drafts, -1)
        return found if n else None

    def _place(self, token_id: int) -> int:
        place = self._places.setdefault(token_id, len(self._places))
        if place == len(self._token_ids):
            more = len(self._token_ids)
            self._token_ids = np.concatenate([self._token_ids, np.zeros(more, np.int64)])
            self._counts = np.concatenate([self._counts, np.zeros(more, np.int64)])
            self._bias = np.concatenate([self._bias, np.zeros(more)])
            self._in_prompt = np.concatenate([self._in_prompt, np.zeros(more, bool)])
        self._token_ids[place] = token_id
        return place
