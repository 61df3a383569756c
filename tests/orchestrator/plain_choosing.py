"""How docs/arithmetic.md chooses a token, in numpy: its own Philox, logarithm and sorting."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from orchestrator.row_choice import RowChoice

_ALL = 2**64 - 1


def plain_choice(logits: NDArray[np.float32], choice: RowChoice, banned: tuple[int, ...] = ()) -> int:
    """The token, or -1 where the largest logit is not finite."""
    logits = logits.copy()
    logits[list(banned)] = -np.inf
    if np.isnan(logits).any() or not np.isfinite(logits.max()):
        return -1
    if choice.temperature == 0:
        return int(logits.argmax())
    with np.errstate(over="ignore"):
        x = ((logits - logits.max()) / np.float32(choice.temperature)).astype(np.float64)
    keys = np.where(_left(logits, x, choice), x + gumbel(len(logits), choice), -np.inf)
    return int(keys.argmax())


def gumbel(vocab: int, choice: RowChoice) -> NDArray[np.float64]:
    """The noise of each token."""
    blocks = [_philox(block, choice) for block in range(-(-vocab // 4))]
    words = np.concatenate(blocks)[:vocab]
    u = ((words >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    return -np.log(-np.log(u))


def _left(logits: NDArray[np.float32], x: NDArray[np.float64], choice: RowChoice) -> NDArray[np.bool_]:
    left = np.ones(len(logits), bool)
    if choice.top_k:
        left &= logits >= np.sort(logits)[::-1][min(choice.top_k, len(logits)) - 1]
    # The kernels' exponential has an error; so has this one. Tests choose logits that both tell apart.
    weights = np.floor(np.exp(x) * 2.0**31)
    if choice.top_p < 1:
        order = [token for token in np.argsort(-logits, kind="stable") if left[token]]
        together = np.cumsum(weights[order])
        last = order[int(np.searchsorted(together, choice.top_p * together[-1]))]
        left &= logits >= logits[last]
    return left & (weights >= choice.min_p * 2.0**31)


def _philox(block: int, choice: RowChoice) -> NDArray[np.uint64]:
    # numpy counts one up before it gives numbers.
    counter = (block | choice.position << 64) - 1
    words = [counter >> shift & _ALL for shift in (0, 64, 128, 192)]
    key = np.array([choice.seed, choice.answer], np.uint64)
    philox = np.random.Philox(key=key, counter=np.array(words, np.uint64))
    found: NDArray[np.uint64] = philox.random_raw(4)
    return found
