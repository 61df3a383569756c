"""Choosing tokens from logits, and verifying drafts without changing the distribution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from placement.errors import NonFiniteError

Probabilities = NDArray[np.float64]


class LogitsRow(Protocol):
    """One row of logits, float32 [vocab]; a tensor's row is one."""

    def numpy(self) -> NDArray[np.float32]:
        """In RAM."""
        ...


@runtime_checkable
class ComparedRow(LogitsRow, Protocol):
    """One row that lies where finding its largest is cheaper than fetching it."""

    def largest(self, banned: Sequence[int]) -> int | None:
        """The id of the largest logit, ties to the lowest id; None where that is not finite.

        Args:
            banned: ids that count as -inf.
        """
        ...


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

    def choose(self, logits: LogitsRow) -> int:
        """A token from one row of logits."""
        if self._temperature == 0:
            return self._greedy(logits)
        return self._sample(self._probabilities(self._row(logits)))

    def draft(self, logits: LogitsRow) -> Draft:
        """A draft from one row of an MTP layer's logits."""
        if self._temperature == 0:
            return Draft(self._greedy(logits), None)
        probabilities = self._probabilities(self._row(logits))
        return Draft(self._sample(probabilities), probabilities)

    def verify(self, logits: Sequence[LogitsRow], drafts: Sequence[Draft]) -> list[int]:
        """The accepted drafts and one token more.

        Args:
            logits: the trunk's rows for the newest token and each draft, 1 + len(drafts) of them.
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

    def _greedy(self, logits: LogitsRow) -> int:
        if not isinstance(logits, ComparedRow):
            return _largest(self._row(logits))
        place = logits.largest(self._banned)
        if place is None:
            raise _not_finite()
        return place

    def _accept_or_resample(self, logits: LogitsRow, token_id: int, q: Probabilities) -> int:
        p = self._probabilities(self._row(logits))
        if self._random.random() * q[token_id] < p[token_id]:
            return token_id
        residual = np.maximum(p - q, 0.0)
        # A rejection means p < q at this token, so p > q at another one. Only rounding can leave nothing.
        return self._sample(residual if residual.any() else p)

    def _row(self, logits: LogitsRow) -> NDArray[np.float32]:
        row = logits.numpy()
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
        raise _not_finite()
    return place


def _not_finite() -> NonFiniteError:
    return NonFiniteError(f"the output matrix gives logits that are not finite; {NonFiniteError.REMEDY}")
