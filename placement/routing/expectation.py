"""What to expect of a placement: activations each worker serves, and how often a layer needs another box."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from placement.given.stats import RoutingStats
from placement.holders import NO_WORKER, HolderTable


def share_of_activations(
    table: HolderTable, stats: RoutingStats, num_workers: int, local_worker: int | None = None
) -> NDArray[np.float64]:
    """Share of all expert activations each worker computes; sums to 1.

    A replicated expert counts for `local_worker` if that holds it, else for its holders in equal parts:
    the dispatcher's choice depends on the other experts of the same token and evens out.

    Returns:
        float64 [num_workers].
    """
    held = table.table != NO_WORKER
    weight = held / held.sum(axis=2, keepdims=True)
    if local_worker is not None:
        local = table.table == local_worker
        weight = np.where(local.any(axis=2, keepdims=True), local, weight)
    activations = (weight * stats.counts[:, :, None])[held]
    per_worker = np.bincount(table.table[held], weights=activations, minlength=num_workers)
    shares: NDArray[np.float64] = per_worker / per_worker.sum()
    return shares


def remote_layers_per_step(
    table: HolderTable, stats: RoutingStats, home_workers: NDArray[np.bool_], tokens_per_step: int = 1
) -> float:
    """Expected number of MoE layers in a step that must ask a worker which is not at home.

    Measured on the trace where there is one: successive tokens form a step. From counts alone, experts
    of one token are taken as drawn without replacement (`absence_probability`) and tokens as independent.

    Args:
        home_workers: bool [num_workers], true for workers on the head's own node.
    """
    padded = np.append(home_workers, False)  # NO_WORKER = -1 finds the False
    at_home = np.asarray(padded[table.table].any(axis=2))
    if stats.trace is None:
        stays_home = absence_probability(stats.frequencies(), ~at_home) ** tokens_per_step
        return float((1 - stays_home).sum())
    num_steps = max(stats.num_tokens // tokens_per_step, 1)
    remote_layers = 0
    for row, chosen in enumerate(stats.trace[: num_steps * tokens_per_step].transpose(1, 0, 2)):
        token_leaves = ~at_home[row, chosen].all(axis=1)
        remote_layers += int(token_leaves.reshape(num_steps, -1).any(axis=1).sum())
    return remote_layers / num_steps


def absence_probability(
    frequencies: NDArray[np.float64], members: NDArray[np.bool_], weights: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """Probability, layer by layer, that none of `members` is among the experts of one token.

    The experts of a token are modelled as conditional Poisson sampling of top_k, the distribution of
    largest entropy with the given frequencies (Chen, Dempster and Liu, Biometrika 81, 1994).

    Args:
        frequencies: float64 [num_layers, num_experts], rows sum to top_k.
        members: bool, the same shape.
        weights: `sampling_weights(frequencies)` where already known.

    Returns:
        float64 [num_layers].
    """
    top_k = round(float(frequencies[0].sum()))
    weights = sampling_weights(frequencies) if weights is None else weights
    everyone = _subset_sums(weights, top_k)[-1, :, top_k]
    others = _subset_sums(np.where(members, 0.0, weights), top_k)[-1, :, top_k]
    return others / everyone


def sampling_weights(frequencies: NDArray[np.float64], tolerance: float = 1e-7) -> NDArray[np.float64]:
    """Weights w such that choosing a set S of top_k experts with probability ~ prod(w[S]) has `frequencies`.

    With the other weights fixed, P(e chosen) = w_e A / (w_e A + B), where A and B sum the products over
    subsets of the others of size top_k - 1 and top_k: solved for w_e, for all experts at once. The step
    is damped, since undamped it oscillates when few experts share the choice; 7 to 30 rounds suffice.

    Args:
        frequencies: float64 [num_layers, num_experts], rows sum to the whole number top_k.

    Returns:
        float64, the same shape; 0 where the frequency is 0.
    """
    top_k = round(float(frequencies[0].sum()))
    # A frequency of exactly 1 would need an infinite weight.
    target = np.clip(frequencies, 0.0, 1 - 1e-9)
    odds = target / (1 - target)
    weights = odds.copy()
    for _ in range(100):
        before = _subset_sums(weights, top_k)
        after = _subset_sums(weights[:, ::-1], top_k)[::-1]
        # Subsets without e: some of the experts before e, the rest of those behind it.
        fewer = np.einsum("elj,elj->le", before[:-1, :, :top_k], after[1:, :, top_k - 1 :: -1])
        chosen = weights * fewer
        if np.abs(chosen / before[-1, :, top_k, None] - target).max() < tolerance:
            break
        absent = np.einsum("elj,elj->le", before[:-1], after[1:, :, ::-1])
        current_odds = np.divide(chosen, absent, out=np.ones_like(weights), where=chosen > 0)
        weights *= (odds / current_odds) ** 0.75
    return weights


def _subset_sums(weights: NDArray[np.float64], top_k: int) -> NDArray[np.float64]:
    """Sums over subsets of the first n experts of the products of their weights.

    Returns:
        float64 [num_experts + 1, num_layers, top_k + 1]: [n, layer, size of the subset].
    """
    num_layers, num_experts = weights.shape
    sums = np.zeros((num_experts + 1, num_layers, top_k + 1))
    sums[:, :, 0] = 1.0
    for expert in range(num_experts):
        sums[expert + 1, :, 1:] = sums[expert, :, 1:] + sums[expert, :, :-1] * weights[:, expert, None]
    return sums
