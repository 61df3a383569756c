"""Has the routing changed since the plan was made? A test with a stated rate of false alarms.

It needs both sides document by document. Totals are not enough: a chi-square test of totals, corrected for
documents by their design effect (Rao and Scott 1981), called drift on 47% (general text) and 63% (code) of
random halves of one and the same text of OLMoE at a nominal 1%, because some experts are far burstier than
others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from placement.errors import InputError

_PERMUTATIONS_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class DriftResult:
    """`p_value`: chance of a difference at least this large if nothing changed."""

    p_value: float
    false_alarm_rate: float

    @property
    def drifted(self) -> bool:
        """True in at most a share `false_alarm_rate` of the tests in which nothing changed.

        That holds for one test. Who looks n times at the same traffic divides the rate by n.
        """
        return self.p_value <= self.false_alarm_rate


def drift_test(
    reference: NDArray[np.integer],
    recent: NDArray[np.integer],
    *,
    false_alarm_rate: float = 0.01,
    num_permutations: int = 999,
    seed: int = 0,
) -> DriftResult:
    """Compare documents seen before with documents seen lately by permuting which is which.

    Documents vary by more than the chance of drawing their tokens, and layers depend on each other; a
    permutation of whole documents respects both, so the false-alarm rate is exact whatever the routing is
    like, as long as documents are exchangeable when nothing changed. (Blocks cut from one running text are
    only so if each is longer than what its topic lasts.) The statistic is the squared difference of the two
    groups' expert shares over their pooled share, summed over layers.

    Args:
        reference, recent: int [num_documents, num_layers, num_experts], from `documents.count_documents`.
        false_alarm_rate: between 0 and 1.
        num_permutations: more than 1 / false_alarm_rate; cost is this times documents x layers x experts.

    Raises:
        InputError: shapes that differ, or too few documents or permutations for the rate.
    """
    if reference.ndim != 3 or reference.shape[1:] != recent.shape[1:]:
        raise InputError(
            f"drift: expected two arrays [documents, layers, experts] of one model, "
            f"found {list(reference.shape)} and {list(recent.shape)}"
        )
    splits = math.comb(len(reference) + len(recent), len(reference))
    if not 0 < false_alarm_rate < 1:
        raise InputError(f"false-alarm rate: expected between 0 and 1, found {false_alarm_rate}")
    # As a division: the number of splits may be larger than any float.
    if splits < 1 / false_alarm_rate:
        raise InputError(
            f"drift: {len(reference)} and {len(recent)} documents split in {splits} ways, too few for a "
            f"false-alarm rate of {false_alarm_rate}: expected more documents (longer traces, or shorter "
            "pieces), or a higher rate"
        )
    if (num_permutations + 1) * false_alarm_rate < 1:
        raise InputError(
            f"drift: a false-alarm rate of {false_alarm_rate} needs at least "
            f"{math.ceil(1 / false_alarm_rate) - 1} permutations, found {num_permutations}"
        )
    documents = np.concatenate([reference, recent]).astype(np.float64)
    num_documents = len(documents)
    choices = documents.sum(axis=2).mean(axis=1)
    pooled = documents.sum(axis=0)
    scale = np.sqrt(np.divide(1.0, pooled, out=np.zeros_like(pooled), where=pooled > 0))
    scaled = (documents * scale).reshape(num_documents, -1)

    rng = np.random.default_rng(seed)
    labels = np.zeros(num_documents)
    labels[: len(reference)] = 1.0
    observed = _difference(labels[None], scaled, choices)[0]
    # Equal splits must compare as equal in spite of rounding, or the test would be too eager.
    threshold = observed * (1 - 1e-9)
    as_large = 0
    for start in range(0, num_permutations, _PERMUTATIONS_AT_ONCE):
        batch = np.tile(labels, (min(_PERMUTATIONS_AT_ONCE, num_permutations - start), 1))
        as_large += int((_difference(rng.permuted(batch, axis=1), scaled, choices) >= threshold).sum())
    return DriftResult((1 + as_large) / (1 + num_permutations), false_alarm_rate)


def _difference(
    labels: NDArray[np.float64], scaled: NDArray[np.float64], choices: NDArray[np.float64]
) -> NDArray[np.float64]:
    """`labels` [permutations, documents], 1 for the first group; `scaled` [documents, layers * experts]."""
    first = (labels @ scaled) / (labels @ choices)[:, None]
    second = ((1 - labels) @ scaled) / ((1 - labels) @ choices)[:, None]
    difference: NDArray[np.float64] = ((first - second) ** 2).sum(axis=1)
    return difference
