"""The text a plan is fitted to: recorded tokens, or tokens drawn from counts where there are too few."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from placement.given.stats import RoutingStats, count_experts
from placement.model_shape import ModelShape
from placement.routing.documents import count_documents, even_lengths, fit_concentration
from placement.routing.expectation import sampling_weights
from placement.routing.routing_profile import smooth

if TYPE_CHECKING:
    from placement.given.problem import PlanningProblem

# Tokens drawn where statistics have counts alone, or a trace of fewer steps than are worth fitting to.
_DRAWN_TOKENS, FEWEST_STEPS = 3000, 96

# A trace of fewer blocks than this says little about how much documents differ.
_BLOCK_TOKENS, _FEWEST_BLOCKS = 256, 4


@dataclass(frozen=True, slots=True, eq=False)
class PlanningText:
    """What a problem is planned and judged with; drawing it takes a second, so it is passed on.

    Attributes:
        stats: the problem's, or those of a router without preferences.
        trace: int [num_tokens, num_moe_layers, top_k].
        basis: what the trace is: recorded, drawn from counts, or from even routing.
    """

    stats: RoutingStats
    trace: NDArray[np.integer]
    basis: Literal["trace", "counts", "even routing"]


def planning_text(problem: PlanningProblem) -> PlanningText:
    """Statistics and tokens to plan with.

    Tokens are drawn from smoothed counts, layers and tokens independent; the same every time. Without
    statistics every expert is as likely as any other.
    """
    if problem.stats is None:
        stats = even_routing(problem.shape)
        return PlanningText(stats, text_of(stats, problem.workload.tokens_per_step), "even routing")
    trace = text_of(problem.stats, problem.workload.tokens_per_step)
    return PlanningText(problem.stats, trace, "trace" if trace is problem.stats.trace else "counts")


def expected_frequencies(stats: RoutingStats) -> NDArray[np.float64]:
    """Smoothed frequencies [num_moe_layers, num_experts]; how alike a text's tokens are, a trace says itself.

    Blocks of the trace stand for its documents: where they differ by chance alone, every token counts.
    """
    if stats.trace is None or len(stats.trace) < _FEWEST_BLOCKS * _BLOCK_TOKENS:
        return smooth(stats.counts, stats.top_k).frequencies
    blocks = count_documents(stats.trace, even_lengths(len(stats.trace), _BLOCK_TOKENS), stats.num_experts)
    concentration = fit_concentration(blocks)
    return smooth(stats.counts, stats.top_k, _BLOCK_TOKENS, concentration).frequencies


def text_of(stats: RoutingStats, tokens_per_step: int = 1) -> NDArray[np.integer]:
    """The trace of statistics if it has enough steps, else tokens drawn from their smoothed counts."""
    if stats.trace is not None and len(stats.trace) >= FEWEST_STEPS * tokens_per_step:
        return stats.trace
    frequencies = smooth(stats.counts, stats.top_k).frequencies
    num_tokens = max(_DRAWN_TOKENS, FEWEST_STEPS * tokens_per_step)
    return _drawn(frequencies.tobytes(), len(frequencies), stats.top_k, num_tokens)


def even_routing(shape: ModelShape) -> RoutingStats:
    """Statistics of a router without preferences: every expert chosen once by each of its own tokens."""
    counts = np.full((shape.num_moe_layers, shape.num_experts), shape.top_k, dtype=np.uint64)
    return RoutingStats.from_counts(shape, counts, shape.num_experts, "even routing (no statistics)")


def stats_of(stats: RoutingStats, trace: NDArray[np.integer]) -> RoutingStats:
    """The same model's statistics of part of a text."""
    counts = count_experts(trace, stats.num_experts)
    return replace(stats, num_tokens=len(trace), counts=counts, trace=trace.astype(np.uint16, copy=False))


def spread_steps(trace: NDArray[np.integer], tokens_per_step: int, most_steps: int) -> NDArray[np.integer]:
    """At most `most_steps` steps of a trace, evenly spread, int [num_tokens, num_moe_layers, top_k]."""
    num_steps = max(len(trace) // tokens_per_step, 1)
    steps = trace[: num_steps * tokens_per_step].reshape(num_steps, -1, *trace.shape[1:])
    chosen = np.linspace(0, num_steps - 1, min(num_steps, most_steps)).astype(np.intp)
    return steps[chosen].reshape(-1, *trace.shape[1:])


# A command asks for the same text several times, and each time draws it for a second.
@lru_cache(maxsize=1)
def _drawn(frequencies: bytes, num_layers: int, top_k: int, num_tokens: int) -> NDArray[np.uint16]:
    """Tokens of a router without memory; `frequencies`: of float64 [num_layers, num_experts]."""
    weights = sampling_weights(np.frombuffer(frequencies).reshape(num_layers, -1))
    generator = np.random.default_rng(0)
    with np.errstate(divide="ignore"):
        scores = np.log(weights)
    trace = np.empty((num_tokens, len(weights), top_k), dtype=np.uint16)
    for row in range(len(weights)):
        # The largest k of scores with Gumbel noise are k draws without replacement.
        noisy = generator.gumbel(size=(num_tokens, weights.shape[1]))
        noisy += scores[row]
        np.negative(noisy, out=noisy)
        trace[:, row] = np.argpartition(noisy, top_k - 1, axis=1)[:, :top_k]
    trace.setflags(write=False)
    return trace
