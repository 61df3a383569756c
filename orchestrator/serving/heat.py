"""How often tokens choose each expert of late."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from orchestrator.model.routing_recorder import Recorder

_MEMORY_TOKENS = 4096
"""What was chosen so many tokens ago counts for 1/e."""
_KEPT_TOKENS = 8192


class Heat:
    """A recorder that counts, and hands on to another one."""

    def __init__(self, moe_layers: Sequence[int], num_experts: int, then: Recorder | None = None) -> None:
        self._rows = {layer: row for row, layer in enumerate(moe_layers)}
        self._counts = np.zeros((len(moe_layers), num_experts))
        self._fresh: list[tuple[int, NDArray[np.int32]]] = []
        self._passes: deque[NDArray[np.uint16]] = deque()
        self._kept_tokens = 0
        self._then = then

    def record(self, layer: int, expert_ids: NDArray[np.int32]) -> None:
        """See `Recorder.record`."""
        row = self._rows[layer]
        if row == 0:
            self._count()
        # Whoever computes the next layer may write to the same memory.
        self._fresh.append((row, expert_ids.copy()))
        if self._then is not None:
            self._then.record(layer, expert_ids)

    def drop_unfinished(self) -> None:
        """See `Recorder.drop_unfinished`."""
        self._fresh.clear()
        if self._then is not None:
            self._then.drop_unfinished()

    def shares(self) -> list[list[float]]:
        """Of each layer's choices, those of each expert; rows of zeros before anything was chosen."""
        totals = self._counts.sum(1, keepdims=True)
        shares: list[list[float]] = (self._counts / np.where(totals > 0, totals, 1)).round(5).tolist()
        return shares

    def recent(self) -> NDArray[np.uint16]:
        """Of the newest tokens, uint16 [num_tokens, num_moe_layers, top_k]; from any thread."""
        passes = list(self._passes)
        return np.concatenate(passes) if passes else np.zeros((0, 0, 0), np.uint16)

    def _count(self) -> None:
        """What a whole pass chose."""
        if len(self._fresh) == len(self._counts):
            self._passes.append(np.stack([ids for _, ids in self._fresh], axis=1).astype(np.uint16))
            self._kept_tokens += len(self._passes[-1])
            while self._kept_tokens > _KEPT_TOKENS:
                self._kept_tokens -= len(self._passes.popleft())
        for row, expert_ids in self._fresh:
            counts = self._counts[row]
            counts *= np.exp(-len(expert_ids) / _MEMORY_TOKENS)
            counts += np.bincount(expert_ids.ravel(), minlength=len(counts))
        self._fresh.clear()
