"""Which experts fire together: within a layer, and from one MoE layer to the next."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from placement.errors import InputError, RoutingFileError
from placement.given.stats import RoutingStats, count_experts
from placement.model_shape import ModelShape

# Tokens whose pairs are counted at once; bounds memory at about this times top_k squared times 8 bytes.
_TOKENS_AT_ONCE = 8192


@dataclass(frozen=True, slots=True, eq=False)
class PairCounts:
    """Tokens that chose both experts of a pair; only pairs that occurred, ascending.

    `pairs`: int64 [num_pairs], the pair (first, second) as first * num_experts + second.
    `tokens`: uint64 [num_pairs].
    """

    num_experts: int
    pairs: NDArray[np.int64]
    tokens: NDArray[np.uint64]

    def dense(self) -> NDArray[np.uint64]:
        """uint64 [num_experts, num_experts], row the first expert of a pair."""
        table = np.zeros(self.num_experts * self.num_experts, dtype=np.uint64)
        table[self.pairs] = self.tokens
        return table.reshape(self.num_experts, self.num_experts)

    def merge(self, other: PairCounts) -> PairCounts:
        pairs, position = np.unique(np.concatenate([self.pairs, other.pairs]), return_inverse=True)
        tokens = np.zeros(len(pairs), dtype=np.uint64)
        np.add.at(tokens, position, np.concatenate([self.tokens, other.tokens]))
        return PairCounts(self.num_experts, pairs, tokens)

    def at_least(self, num_tokens: int) -> PairCounts:
        """Without the pairs that fewer tokens chose: what is too rare to plan with takes no space."""
        kept = self.tokens >= num_tokens
        return PairCounts(self.num_experts, self.pairs[kept], self.tokens[kept])


@dataclass(frozen=True, slots=True, eq=False)
class CoActivation:
    """Joint routing of a trace.

    `within[row]`: pairs of two experts of MoE layer `row`, the lower one first. `between[row]`: pairs of an
    expert of MoE layer `row` and one of MoE layer `row + 1`; one entry fewer. `counts`: uint64
    [num_moe_layers, num_experts], each expert alone.
    """

    fingerprint: str
    top_k: int
    num_tokens: int
    counts: NDArray[np.uint64]
    within: tuple[PairCounts, ...]
    between: tuple[PairCounts, ...]

    @classmethod
    def from_trace(cls, shape: ModelShape, trace: ArrayLike, source: str) -> CoActivation:
        """Count pairs in `trace`, int [num_tokens, num_moe_layers, top_k].

        Time grows with tokens x layers x top_k squared, memory with layers x experts squared at most.

        Raises:
            RoutingFileError: another shape, or an expert that the model does not have.
        """
        return cls.from_stats(shape, RoutingStats.from_trace(shape, trace, source))

    @classmethod
    def from_stats(cls, shape: ModelShape, stats: RoutingStats) -> CoActivation:
        """Count pairs in the trace of `stats`.

        Raises:
            RoutingFileError: statistics of another model, or without a trace.
        """
        stats.check(shape)
        if stats.trace is None:
            raise RoutingFileError(
                f"{stats.source}: counts alone do not say which experts fire together: expected statistics "
                "with a trace"
            )
        trace, num_experts = stats.trace, stats.num_experts
        upper, lower = np.triu_indices(shape.top_k, k=1)
        every = np.arange(shape.top_k)
        left, right = np.repeat(every, shape.top_k), np.tile(every, shape.top_k)
        within = [
            _count_pairs(trace[:, row], trace[:, row], upper, lower, num_experts, ordered=False)
            for row in range(shape.num_moe_layers)
        ]
        between = [
            _count_pairs(trace[:, row], trace[:, row + 1], left, right, num_experts, ordered=True)
            for row in range(shape.num_moe_layers - 1)
        ]
        counts = count_experts(trace, num_experts)
        return cls(shape.fingerprint, shape.top_k, len(trace), counts, tuple(within), tuple(between))

    def merge(self, other: CoActivation) -> CoActivation:
        """Both together.

        Raises:
            RoutingFileError: joint routing of different models.
        """
        if other.fingerprint != self.fingerprint:
            raise RoutingFileError(
                f"cannot merge joint routing of models {self.fingerprint} and {other.fingerprint}: "
                "expected the same model shape"
            )
        return CoActivation(
            self.fingerprint,
            self.top_k,
            self.num_tokens + other.num_tokens,
            self.counts + other.counts,
            tuple(a.merge(b) for a, b in zip(self.within, other.within, strict=True)),
            tuple(a.merge(b) for a, b in zip(self.between, other.between, strict=True)),
        )

    def lift_within(self, row: int) -> NDArray[np.float64]:
        """How much likelier two experts of a layer fire together than if choices were independent.

        The reference is top_k choices without replacement with the experts' own frequencies: p_a p_b
        scaled so that the pairs add up. 1 where nothing is known.

        Returns:
            float64 [num_experts, num_experts], symmetric, diagonal 1.
        """
        half = self.within[row].dense().astype(np.float64)
        observed = half + half.T
        frequency = self.counts[row] / max(self.num_tokens, 1)
        expected = np.outer(frequency, frequency)
        np.fill_diagonal(expected, 0)
        scale = observed.sum() / expected.sum() if expected.sum() > 0 else 0.0
        return _ratio(observed, expected * scale)

    def lift_between(self, row: int) -> NDArray[np.float64]:
        """How much likelier expert b of MoE layer row + 1 follows expert a of MoE layer row than by chance.

        Returns:
            float64 [num_experts, num_experts], P(a and b) / (P(a) P(b)), 1 where nothing is known.

        Raises:
            InputError: no such pair of layers.
        """
        if not 0 <= row < len(self.between):
            raise InputError(f"layer pair {row}: expected 0 to {len(self.between) - 1}")
        observed = self.between[row].dense().astype(np.float64)
        expected = np.outer(self.counts[row], self.counts[row + 1]) / max(self.num_tokens, 1)
        return _ratio(observed, expected)


def _count_pairs(
    first: NDArray[np.uint16],
    second: NDArray[np.uint16],
    left: NDArray[np.int64],
    right: NDArray[np.int64],
    num_experts: int,
    *,
    ordered: bool,
) -> PairCounts:
    table = np.zeros(num_experts * num_experts, dtype=np.int64)
    for start in range(0, len(first), _TOKENS_AT_ONCE):
        a = first[start : start + _TOKENS_AT_ONCE, left].astype(np.int64)
        b = second[start : start + _TOKENS_AT_ONCE, right].astype(np.int64)
        if not ordered:
            a, b = np.minimum(a, b), np.maximum(a, b)
        table += np.bincount((a * num_experts + b).ravel(), minlength=len(table))
    pairs = np.flatnonzero(table)
    return PairCounts(num_experts, pairs, table[pairs].astype(np.uint64))


def _ratio(observed: NDArray[np.float64], expected: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(observed, expected, out=np.ones_like(observed), where=expected > 0)
