"""The mixture-of-experts block: router, routed experts wherever they live, shared expert."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from orchestrator.model.routing_recorder import RoutingRecorder
from orchestrator.timing import StepTimer
from placement.errors import NonFiniteError
from transport.expert_rows import ExpertRows
from workers import fixed_point, kernels
from workers.formats.checkpoint import Checkpoint
from workers.model_config import Step35Config
from workers.store import ExpertStore


class ExpertRunner(Protocol):
    """Runs a layer's routed experts, here or elsewhere."""

    def run(self, layer: int, rows: ExpertRows, while_waiting: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
        """Sum each row's weighted expert outputs on the fixed-point grid.

        Args:
            layer: absolute layer index.
            rows: one a token, all of its experts; hidden is float32, already rounded to the run's dtype.
            while_waiting: called once; a remote runner calls it while answers are in flight.

        Returns:
            (routed sum float32 [num_tokens, hidden], what while_waiting returned).

        Raises:
            NonFiniteError: an expert's output is not finite.
        """
        ...


@dataclass(frozen=True, slots=True)
class FfnWeights:
    """A SwiGLU block, dense or shared: gate, up [inner, hidden], down [hidden, inner]; limit 0 is none."""

    gate: Tensor
    up: Tensor
    down: Tensor
    limit: float

    def forward(self, x: Tensor) -> Tensor:
        """float32 [num_tokens, hidden] -> [num_tokens, hidden]."""
        return kernels.dense_ffn(x, self.gate, self.up, self.down, self.limit)


@dataclass(frozen=True, slots=True)
class MoeWeights:
    """The head's part of one MoE layer.

    Attributes:
        router: float32 [num_experts, hidden].
        router_bias: float32 [num_experts], takes part in the choice only; None: no bias.
        shared: the shared expert.
        input_dtype: what the experts' input rows are rounded to.
    """

    router: Tensor
    router_bias: Tensor | None
    shared: FfnWeights
    top_k: int
    normalise: bool
    scaling_factor: float
    input_dtype: torch.dtype


def moe(
    weights: MoeWeights,
    residual: Tensor,
    x: Tensor,
    layer: int,
    experts: ExpertRunner,
    timer: StepTimer,
    recorder: RoutingRecorder | None,
) -> Tensor:
    """Add the MoE block's output of normed rows `x` to `residual`; both float32 [num_tokens, hidden]."""
    with timer.part("router"):
        logits = kernels.linear(x, weights.router)
        expert_ids, expert_weights = kernels.route_top_k(
            logits, weights.router_bias, weights.top_k, weights.normalise, weights.scaling_factor
        )
        scale_exponents = fixed_point.scale_exponents(residual)
    if recorder is not None:
        recorder.record(layer, expert_ids)
    hidden = x if weights.input_dtype == torch.float32 else x.to(weights.input_dtype).float()

    def shared_expert() -> Tensor:
        with timer.part("shared_expert"):
            return weights.shared.forward(hidden)

    rows = ExpertRows(hidden.numpy(), expert_ids, expert_weights, scale_exponents)
    routed, shared = experts.run(layer, rows, shared_expert)
    return routed.add_(shared).add_(residual)


class LocalExperts:
    """Runs every expert in this process."""

    def __init__(self, store: ExpertStore, timer: StepTimer | None = None) -> None:
        self.store = store
        self.timer = timer if timer is not None else StepTimer()

    @classmethod
    def load(
        cls,
        checkpoint: Checkpoint,
        config: Step35Config,
        dtype: torch.dtype,
        timer: StepTimer | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> LocalExperts:
        """Load all experts of a checkpoint into this process's memory."""
        everything = {layer: range(config.moe_num_experts) for layer in config.moe_layers}
        store = ExpertStore.load(checkpoint, config, everything, dtype=dtype, on_progress=on_progress)
        return cls(store, timer)

    def run(self, layer: int, rows: ExpertRows, while_waiting: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
        """See ExpertRunner.run."""
        with self.timer.part("local_experts"):
            part = self.store.forward(layer, rows)
            routed = fixed_point.to_float32(part.values, rows.scale_exponents)
            if True in part.saturated:
                self._coarsen(layer, rows, part.saturated, routed.numpy())
        return routed, while_waiting()

    def _coarsen(
        self, layer: int, rows: ExpertRows, saturated: NDArray[np.bool_], routed: NDArray[np.float32]
    ) -> None:
        """Recompute saturated rows of `routed` in place, on coarser and coarser grids."""
        places = np.flatnonzero(saturated)
        rows = rows.at(places)
        for _ in range(fixed_point.MAX_COARSENINGS):
            rows = rows._replace(scale_exponents=fixed_point.coarser(rows.scale_exponents))
            part = self.store.forward(layer, rows)
            fits = ~part.saturated
            sums = fixed_point.to_float32(part.values[fits], rows.scale_exponents[fits])
            routed[places[fits]] = sums.numpy()
            places, rows = places[part.saturated], rows.at(part.saturated)
            if len(places) == 0:
                return
        raise NonFiniteError(
            f"layer {layer}: an expert's output is not finite; expected finite numbers, so the checkpoint's "
            "weights of this layer are probably broken: check the files"
        )
