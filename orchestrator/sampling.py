"""Choosing tokens from logits, and verifying drafts without changing the distribution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from placement.errors import NonFiniteError

Probabilities = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Draft:
    """A drafted token and what it was sampled from, float64 [vocab]; None if taken greedily."""

    token_id: int
    probabilities: Probabilities | None


class Sampler:
    """Chooses one sequence's tokens.

    Temperature 0 takes the largest logit, ties to the lowest id. Above 0, drafts are sampled from the MTP
    layer's distribution q at the same temperature and accepted with probability min(1, p/q); at the first
    rejection the token comes from max(p - q, 0), normalised. The output then follows p exactly, whatever q is
    (Leviathan et al., "Fast inference from transformers via speculative decoding", 2023). Probabilities are
    computed in float64, one row at a time.
    """

    def __init__(self, temperature: float, seed: int, banned: Sequence[int] = ()) -> None:
        self._temperature = temperature
        self._random = np.random.Generator(np.random.PCG64(seed))
        self._banned = list(banned)

    def choose(self, logits: Tensor) -> int:
        """A token from one row of logits, float32 [vocab]."""
        row = self._row(logits)
        if self._temperature == 0:
            return _largest(row)
        return self._sample(self._probabilities(row))

    def draft(self, logits: Tensor) -> Draft:
        """A draft from one row of an MTP layer's logits, float32 [vocab]."""
        row = self._row(logits)
        if self._temperature == 0:
            return Draft(_largest(row), None)
        probabilities = self._probabilities(row)
        return Draft(self._sample(probabilities), probabilities)

    def verify(self, logits: Tensor, drafts: Sequence[Draft]) -> list[int]:
        """The accepted drafts and one token more.

        Args:
            logits: the trunk's rows for the newest token and each draft, float32 [1 + len(drafts), vocab].
        """
        tokens: list[int] = []
        for place, draft in enumerate(drafts):
            if draft.probabilities is None:
                token_id = self.choose(logits[place])
            else:
                token_id = self._accept_or_resample(logits[place], draft.token_id, draft.probabilities)
            tokens.append(token_id)
            if token_id != draft.token_id:
                return tokens
        tokens.append(self.choose(logits[len(drafts)]))
        return tokens

    def _accept_or_resample(self, logits: Tensor, token_id: int, q: Probabilities) -> int:
        p = self._probabilities(self._row(logits))
        if self._random.random() * q[token_id] < p[token_id]:
            return token_id
        residual = np.maximum(p - q, 0.0)
        # A rejection means p < q at this token, so p > q at another one. Only rounding can leave nothing.
        return self._sample(residual if residual.any() else p)

    def _row(self, logits: Tensor) -> NDArray[np.float32]:
        row: NDArray[np.float32] = logits.numpy()
        if self._banned:
            row = row.copy()
            row[self._banned] = -np.inf
        return row

    def _probabilities(self, row: NDArray[np.float32]) -> Probabilities:
        largest = row[_largest(row)]
        # At a temperature near 0 the exponents of the other tokens overflow to -inf, and their weights are 0.
        with np.errstate(over="ignore"):
            weights = np.exp((row.astype(np.float64) - largest) / self._temperature)
        return np.asarray(weights / weights.sum())

    def _sample(self, weights: Probabilities) -> int:
        """A token with probability proportional to `weights`."""
        cumulative = np.cumsum(weights)
        place = self._random.random() * cumulative[-1]
        return int(np.searchsorted(cumulative, place, side="right"))


def _largest(row: NDArray[np.float32]) -> int:
    place = int(row.argmax())
    if not np.isfinite(row[place]):
        raise NonFiniteError(f"the output matrix gives logits that are not finite; {NonFiniteError.REMEDY}")
    return place
