"""The rows that probes ask for: which experts each chooses, and what it holds."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.fidelity.layouts import HEAD_NODE
from placement.model_shape import ModelShape
from placement.plan import Plan

CHUNK_ROWS = 256


def same_experts(top_k: int, experts: Sequence[int], rows: int) -> NDArray[np.int32]:
    """Rows that all choose `experts`: int32 [rows, top_k], -1 behind them."""
    ids = np.full((rows, top_k), -1, np.int32)
    ids[:, : len(experts)] = experts
    return ids


def routed_ids(
    shape: ModelShape, held: Collection[int], turn: int, rows: int = CHUNK_ROWS
) -> NDArray[np.int32]:
    """Rows that choose their experts by lot: int32 [rows, top_k], -1 for those that are not in `held`."""
    keys = np.random.default_rng(turn).random((rows, shape.num_experts))
    ids = keys.argsort(axis=1)[:, : shape.top_k].astype(np.int32)
    return np.where(np.isin(ids, list(held)), ids, np.int32(-1))


def chunk_ids(
    shape: ModelShape, held: Collection[int], turn: int, rows: int = CHUNK_ROWS
) -> NDArray[np.int32]:
    """What a chunk of a prompt asks of a process that holds `held`: without the rows that need none."""
    ids = routed_ids(shape, held, turn, rows)
    return ids[(ids >= 0).any(axis=1)]


def fan_out_ids(shape: ModelShape, plan: Plan, turn: int, rows: int) -> tuple[int, NDArray[np.int32]]:
    """A MoE layer, and what so many rows ask there of the workers on the head's node, the head included."""
    layer = shape.moe_layers[turn % shape.num_moe_layers]
    here = [worker.name for worker in plan.tiers if worker.node == HEAD_NODE]
    held = [expert for name in here for expert in plan.experts_of(name)[layer]]
    return layer, routed_ids(shape, held, turn, rows)


def hidden_rows(shape: ModelShape, rows: int, turn: int) -> NDArray[np.float32]:
    """float32 [rows, hidden_size], no row like another."""
    return np.random.default_rng(turn).standard_normal((rows, shape.hidden_size)).astype(np.float32)


def rotated(experts: tuple[int, ...], turn: int) -> tuple[int, ...]:
    """Those not read for a while first."""
    start = turn % len(experts)
    return experts[start:] + experts[:start]
