"""What a card does for the head: some of its layers, output matrix and MTP layers, with the CPU's bits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from orchestrator.model.attention import SequenceSlice
from orchestrator.model.kv_pool import KvPool
from orchestrator.model.moe import ExpertRunner
from orchestrator.model.routing_recorder import Recorder
from orchestrator.sampling import Logits


class OnCard(Protocol):
    """The part of a head that a card computes; the rest stays on the CPU."""

    @property
    def device_name(self) -> str:
        """The card's, such as "cuda:0"."""
        ...

    @property
    def layers(self) -> range:
        """Of the trunk, by place: a run at one of its ends, or all, or none."""
        ...

    @property
    def num_mtp(self) -> int:
        """The first MTP layers that it has, each with its own output matrix."""
        ...

    @property
    def has_output(self) -> bool:
        """Whether it has the final norm and the output matrix."""
        ...

    @property
    def pool(self) -> KvPool:
        """Where the caches of its layers take their pages."""
        ...

    def run(
        self,
        hidden_states: Tensor,
        batch: Sequence[SequenceSlice],
        experts: ExpertRunner,
        recorder: Recorder | None,
    ) -> Tensor:
        """Its layers of the trunk: float32 [num_tokens, hidden] in RAM -> the same.

        Raises:
            NonFiniteError, PassLost: as `decoder_layer`.
            DeviceLost: the card stopped working.
        """
        ...

    def run_mtp(
        self,
        k: int,
        embedded: Tensor,
        states: Tensor,
        batch: Sequence[SequenceSlice],
        experts: ExpertRunner,
    ) -> Tensor:
        """MTP layer k: rows of the embedding and of the layer before it, float32 [num_tokens, hidden] each.

        Args:
            batch: the caches of this layer alone.
        """
        ...

    def logits(self, hidden_states: Tensor) -> Logits:
        """Of rows before the final norm, float32 [n, hidden]."""
        ...

    def mtp_logits(self, k: int, rows: Tensor) -> Logits:
        """Of MTP layer k's output matrix, from what `run_mtp` gave."""
        ...
