"""Probabilities of tokens, for who asks for them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class RowLogprob:
    """Natural logarithms of a row's probabilities: of the chosen token and of the likeliest, best first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


def row_logprob(logits: NDArray[np.float32], token_id: int, temperature: float, top: int) -> RowLogprob:
    """Of the softmax of a row at a temperature, before tokens are left out; of 0, the softmax at 1.

    Args:
        logits: [vocab]; none of them +inf or not a number.
        top: how many of the likeliest, ties to the lowest id.
    """
    scaled = (logits.astype(np.float64) - float(logits.max())) / (temperature or 1.0)
    log_sum = np.log(np.exp(scaled).sum())
    best: list[int] = []
    if top:
        count = min(top, len(logits))
        least = np.partition(scaled, len(scaled) - count)[len(scaled) - count]
        found = np.flatnonzero(scaled >= least)
        best = found[np.argsort(-scaled[found], kind="stable")][:count].tolist()
    return RowLogprob(
        token_id,
        float(scaled[token_id] - log_sum),
        tuple((token, float(scaled[token] - log_sum)) for token in best),
    )
