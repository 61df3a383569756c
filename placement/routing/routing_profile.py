"""Routing that forgets: how often experts are chosen lately, and how far to believe it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from placement.errors import InputError, RoutingFileError
from placement.given.apportion import apportion
from placement.given.stats import RoutingStats
from placement.model_shape import ModelShape
from placement.routing.documents import GENERAL_TEXT_CONCENTRATION, design_effect

# A chat turn or a source file; used where nobody says how long the documents were.
DOCUMENT_TOKENS = 512


@dataclass(frozen=True, slots=True, eq=False)
class RoutingProfile:
    """Expert use in which a token counts half as much `half_life_tokens` later, and so on.

    `weights`: float64 [num_moe_layers, num_experts], choices weighted by age; `num_tokens` is the sum of
    the tokens' weights, so a row of `weights` sums to num_tokens * top_k. An infinite half-life forgets
    nothing. Values: `observe` and `observe_counts` give a new profile.
    """

    model: str
    fingerprint: str
    moe_layers: tuple[int, ...]
    top_k: int
    half_life_tokens: float
    num_tokens: float
    weights: NDArray[np.float64]

    @classmethod
    def empty(cls, shape: ModelShape, half_life_tokens: float = math.inf) -> RoutingProfile:
        """A profile that has seen nothing.

        Raises:
            InputError: a half-life that is not positive.
        """
        if not half_life_tokens > 0:
            raise InputError(f"half-life: expected a positive number of tokens, found {half_life_tokens}")
        weights = np.zeros((shape.num_moe_layers, shape.num_experts))
        return cls(
            shape.name, shape.fingerprint, shape.moe_layers, shape.top_k, half_life_tokens, 0.0, weights
        )

    def observe(self, trace: ArrayLike) -> RoutingProfile:
        """With the tokens of `trace`, int [num_tokens, num_moe_layers, top_k], oldest first.

        However a text is cut into calls, the profile is the same up to rounding.

        Raises:
            RoutingFileError: another shape, or an expert that the model does not have.
        """
        chosen = np.asarray(trace)
        num_layers, num_experts = self.weights.shape
        if chosen.ndim != 3 or chosen.shape[1:] != (num_layers, self.top_k) or chosen.dtype.kind not in "iu":
            raise RoutingFileError(
                f"trace: expected whole numbers [tokens, {num_layers}, {self.top_k}], "
                f"found {chosen.dtype} {list(chosen.shape)}"
            )
        if chosen.size and not 0 <= chosen.min() <= chosen.max() < num_experts:
            raise RoutingFileError(
                f"trace: expected experts 0 to {num_experts - 1}, found {chosen.min()} to {chosen.max()}"
            )
        ages = np.arange(len(chosen) - 1, -1, -1)
        token_weights = np.exp2(-ages / self.half_life_tokens)
        choice_weights = np.repeat(token_weights, self.top_k)
        seen: NDArray[np.float64] = np.stack(
            [
                np.bincount(chosen[:, layer].ravel(), weights=choice_weights, minlength=num_experts)
                for layer in range(num_layers)
            ]
        )
        return self._aged_by(len(chosen), float(token_weights.sum()), seen)

    def observe_counts(self, stats: RoutingStats) -> RoutingProfile:
        """With `stats`, its tokens taken as newer than all seen; in order if it has a trace, else as one mix.

        Raises:
            RoutingFileError: statistics of another model.
        """
        stats.check_fingerprint(self.fingerprint, self.model, "routing profile")
        if stats.trace is not None:
            return self.observe(stats.trace)
        mean_weight = self._sum_of_weights(stats.num_tokens) / max(stats.num_tokens, 1)
        return self._aged_by(
            stats.num_tokens, stats.num_tokens * mean_weight, stats.counts.astype(np.float64) * mean_weight
        )

    def frequencies(self) -> NDArray[np.float64]:
        """float64 [num_moe_layers, num_experts]: weighted share of tokens that chose the expert."""
        frequencies: NDArray[np.float64] = self.weights / max(self.num_tokens, np.finfo(np.float64).tiny)
        return frequencies

    def to_stats(self, shape: ModelShape, source: str) -> RoutingStats:
        """As counts of whole tokens: as many as their weights add up to.

        Raises:
            InputError: nothing seen yet.
        """
        if not self.num_tokens:
            raise InputError("routing profile: expected at least one token, found none")
        num_tokens = max(1, round(self.num_tokens))
        counts = apportion(self.weights, num_tokens * self.top_k)
        return RoutingStats.from_counts(shape, counts, num_tokens, source)

    def _sum_of_weights(self, num_tokens: int) -> float:
        """1 + d + d^2 + ... over `num_tokens` terms, d = 2^(-1/half-life); exact also for d near 1."""
        step = math.log(2) / self.half_life_tokens
        return float(num_tokens) if step == 0 else math.expm1(-step * num_tokens) / math.expm1(-step)

    def _aged_by(
        self, num_tokens: int, new_tokens: float, new_weights: NDArray[np.float64]
    ) -> RoutingProfile:
        kept = 2.0 ** (-num_tokens / self.half_life_tokens)
        return replace(
            self, num_tokens=self.num_tokens * kept + new_tokens, weights=self.weights * kept + new_weights
        )


@dataclass(frozen=True, slots=True, eq=False)
class SmoothedFrequencies:
    """Frequencies to plan with.

    `frequencies`: float64 [num_moe_layers, num_experts], rows sum to top_k. `confidence`: float64
    [num_moe_layers], the share of the data against the even prior in the mix, 0 for no data and towards 1
    for much. `effective_choices`: float64 [num_moe_layers], how many independent choices the data are worth.
    """

    frequencies: NDArray[np.float64]
    confidence: NDArray[np.float64]
    effective_choices: NDArray[np.float64]
    prior_concentration: float


def smooth(
    counts: NDArray[np.floating] | NDArray[np.integer],
    top_k: int,
    document_tokens: int = DOCUMENT_TOKENS,
    document_concentration: float = GENERAL_TEXT_CONCENTRATION,
) -> SmoothedFrequencies:
    """Shrink counts toward even use, the more the fewer independent choices they hold.

    Posterior mean under a symmetric Dirichlet prior: with n effective choices and prior concentration A, the
    share of an expert is (n * observed + A / experts) / (n + A), and n / (n + A) is the confidence. n is the
    number of choices over the design effect of documents (`documents.design_effect`). A is fitted to the
    data, one for all layers (empirical Bayes, by moments): with S the chance that two choices fall on the
    same expert, freed of sampling noise, A = (1 - S) / (S - 1 / experts). One A for all layers predicted
    held-out documents of OLMoE better than one a layer, where few documents are seen.

    Args:
        counts: [num_layers, num_experts], choices, or choices weighted by age.
        document_tokens: tokens of a typical document.
    """
    observed = counts.astype(np.float64)
    num_experts = observed.shape[1]
    effect = design_effect(document_tokens * top_k, document_concentration)
    choices = observed.sum(axis=1)
    # Less than one document is still one document, not a fraction of an independent choice.
    effective = np.maximum(choices / effect, np.minimum(choices, 1.0))
    even = 1.0 / num_experts
    shares = np.where(
        choices[:, None] > 0, observed / np.maximum(choices, np.finfo(float).tiny)[:, None], even
    )

    judged = effective > 1
    concentration = math.inf
    if judged.any():
        noise = 1 / effective[judged]
        collision = float((((shares[judged] ** 2).sum(axis=1) - noise) / (1 - noise)).mean())
        if collision > even:
            concentration = (1 - collision) / (collision - even)
    confidence = effective / (effective + concentration)
    mixed = confidence[:, None] * shares + (1 - confidence[:, None]) * even
    return SmoothedFrequencies(mixed * top_k, confidence, effective, concentration)
