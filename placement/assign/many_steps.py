"""The choice among holders for many steps and layers at once: `one_step.assign_experts`, to the last bit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from placement.assign.one_step import ReplicaCosts, assign_experts
from placement.assign.replica_columns import Choices, choose_workers
from placement.holders import NO_WORKER, LayerHolders

# Fewer steps than this are chosen for one by one, which is faster; one more for so many choices of a step.
_FEW_STEPS = 16
_CHOICES_A_STEP = 128
# Choices at a time, so that what a round looks up stays in the processor's second-level cache.
_BLOCK_CHOICES = 1 << 17


def assign_steps(
    expert_ids: NDArray[np.integer], holders: LayerHolders, costs: ReplicaCosts
) -> NDArray[np.int16]:
    """`assign_experts` for many steps of one layer.

    Linear in the choices, in as many rounds as a step has choices.

    Args:
        expert_ids: int [num_steps, num_tokens, top_k].

    Returns:
        int16, of the shape of `expert_ids`.
    """
    chosen: NDArray[np.int16] = assign_layers(expert_ids[None], [holders], costs)[0]
    return chosen


def assign_layers(
    expert_ids: NDArray[np.integer], layers: Sequence[LayerHolders], costs: ReplicaCosts
) -> NDArray[np.int16]:
    """`assign_steps` for many layers, which costs little more than for one where steps are few.

    Args:
        expert_ids: int [num_layers, num_steps, num_tokens, top_k].
        layers: rows of one table.

    Returns:
        int16, of the shape of `expert_ids`.
    """
    if not any(holders.has_replicas for holders in layers):
        return np.stack([holders.single.take(ids) for holders, ids in zip(layers, expert_ids, strict=True)])
    chosen = np.empty(expert_ids.shape, dtype=np.int16)
    columns = expert_ids.transpose(2, 3, 0, 1)
    for rows, steps in _blocks(expert_ids.shape):
        workers = assign_columns(columns[:, :, rows, steps], layers[rows], costs).workers
        block = chosen[rows, steps]
        block[...] = workers.transpose(2, 3, 0, 1)
        block[block == costs.num_workers] = NO_WORKER
    return chosen


def assign_columns(
    expert_ids: NDArray[np.integer], layers: Sequence[LayerHolders], costs: ReplicaCosts
) -> Choices:
    """`assign_layers` with the steps along the last axis, all at once: for no more than fit a cache.

    Args:
        expert_ids: int [num_tokens, top_k, num_layers, num_steps].
        layers: rows of one table.
    """
    num_tokens, top_k, num_layers, num_steps = expert_ids.shape
    choices = num_tokens * top_k
    chosen = np.empty(expert_ids.shape, dtype=np.min_scalar_type(costs.num_workers))
    if not any(holders.has_replicas for holders in layers):
        for layer, holders in enumerate(layers):
            single = np.where(holders.single == NO_WORKER, costs.num_workers, holders.single)
            chosen[:, :, layer] = single.astype(chosen.dtype).take(expert_ids[:, :, layer])
        return Choices(chosen)
    if num_layers * num_steps < _FEW_STEPS + choices // _CHOICES_A_STEP:
        for layer, holders in enumerate(layers):
            for step in range(num_steps):
                workers = assign_experts(expert_ids[:, :, layer, step], holders, costs)
                chosen[:, :, layer, step] = np.where(workers == NO_WORKER, costs.num_workers, workers)
        return Choices(chosen)
    return choose_workers(expert_ids, layers, costs.finish_s(choices))


def _blocks(shape: tuple[int, ...]) -> Iterator[tuple[slice, slice]]:
    """Layers and steps of `assign_layers` that go together: many layers of few steps, or parts of a layer."""
    num_layers, num_steps, num_tokens, top_k = shape
    most = max(_BLOCK_CHOICES // max(num_tokens * top_k, 1), 1)
    layers = max(most // max(num_steps, 1), 1)
    for row in range(0, num_layers, layers):
        for step in range(0, num_steps, most):
            yield slice(row, row + layers), slice(step, step + most)
