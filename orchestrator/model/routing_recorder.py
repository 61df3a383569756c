"""Which experts the tokens of a run chose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Recorder(Protocol):
    """Is told which experts tokens choose, layer after layer of each pass."""

    def record(self, layer: int, expert_ids: NDArray[np.int32]) -> None:
        """Note int32 [num_tokens, top_k] of absolute layer `layer`."""
        ...

    def drop_unfinished(self) -> None:
        """Forget what was noted of a pass that did not reach the last layer."""
        ...


class RoutingRecorder:
    """Keeps which experts each token chose, for routing statistics."""

    def __init__(self, moe_layers: Sequence[int], num_experts: int, top_k: int) -> None:
        self._row_of = {layer: row for row, layer in enumerate(moe_layers)}
        self._chosen: list[list[NDArray[np.uint16]]] = [[] for _ in moe_layers]
        self._num_experts = num_experts
        self._top_k = top_k

    def record(self, layer: int, expert_ids: NDArray[np.int32]) -> None:
        """Note int32 [num_tokens, top_k] of absolute layer `layer`."""
        self._chosen[self._row_of[layer]].append(expert_ids.astype(np.uint16))

    def drop_unfinished(self) -> None:
        """Forget what was noted of a pass that did not reach the last layer."""
        finished = min((len(chosen) for chosen in self._chosen), default=0)
        for chosen in self._chosen:
            del chosen[finished:]

    def counts(self) -> NDArray[np.uint64]:
        """Times each expert was chosen, uint64 [moe_layers, num_experts]."""
        counts = np.zeros((len(self._chosen), self._num_experts), np.uint64)
        for row, chosen in enumerate(self._chosen):
            for expert_ids in chosen:
                counts[row] += np.bincount(expert_ids.ravel(), minlength=self._num_experts).astype(np.uint64)
        return counts

    def trace(self) -> NDArray[np.uint16]:
        """Chosen experts, best first, uint16 [num_tokens, moe_layers, top_k]."""
        empty = np.empty((0, self._top_k), np.uint16)
        return np.stack([np.concatenate([empty, *chosen]) for chosen in self._chosen], axis=1)

    def passes(self) -> list[NDArray[np.uint16]]:
        """The same pass by pass, rejected drafts included: uint16 [num_tokens, moe_layers, top_k] each."""
        return [np.stack(layers, axis=1) for layers in zip(*self._chosen, strict=True)]
