"""The mixture-of-experts block: router, routed experts wherever they live, shared expert."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from orchestrator import kernels
from orchestrator.dispatch.pass_lost import PassLost
from orchestrator.model.routing_recorder import Recorder
from orchestrator.timing import StepTimer
from transport.expert_rows import ExpertRows
from workers.kernels import Matrices, Matrix


class ExpertRunner(Protocol):
    """Runs a layer's routed experts, wherever they live: asked first, so that other work fits in between."""

    def begin_pass(self, lost: PassLost | None = None) -> None:
        """Settle who is asked in the pass that follows; `lost`: why the last one did not end."""
        ...

    def ask(self, layer: int, rows: ExpertRows) -> Any:
        """Send off what other processes are to compute.

        Args:
            layer: absolute layer index.
            rows: one a token, all of its experts; hidden is float32, rounded to bfloat16 where that is the
                layer's form on the wire.

        Returns:
            What `collect` takes, before any other layer is asked.

        Raises:
            PassLost: the pass cannot end as it was settled, and must begin again.
        """
        ...

    def collect(self, asked: Any) -> Tensor:
        """Compute what lives here, wait for the rest.

        Returns:
            Each row's weighted sum of expert outputs, added on its fixed-point grid: float32
            [num_tokens, hidden], the caller's to write to.

        Raises:
            NonFiniteError: an expert's output is not finite.
            PassLost: as `ask`.
        """
        ...

    def collect_on_grid(self, asked: Any) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """As `collect`, for who has more to add.

        Returns:
            int32 [num_tokens, hidden], and the exponents [num_tokens] of the grids that the rows are on:
            those asked for, or coarser ones.
        """
        ...

    def count_own(self, pairs: int) -> None:
        """So many (row, expert) pairs were computed by the head itself and not asked for."""
        ...


@dataclass(frozen=True, slots=True)
class FfnWeights:
    """A SwiGLU block, dense or shared: gate, up [inner, hidden], down [hidden, inner]; limit 0 is none."""

    gate: Matrix
    up: Matrix
    down: Matrix
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
        rows_in_bfloat16: the experts' input rows are rounded to bfloat16 (docs/arithmetic.md, 'The wire').
    """

    router: Matrices
    router_bias: Tensor | None
    shared: FfnWeights
    top_k: int
    normalise: bool
    scaling_factor: float
    rows_in_bfloat16: bool


def moe(
    weights: MoeWeights,
    residual: Tensor,
    x: Tensor,
    scale_exponents: NDArray[np.int32],
    layer: int,
    experts: ExpertRunner,
    timer: StepTimer,
    recorder: Recorder | None,
) -> Tensor:
    """Add the MoE block's output of normed rows `x` to `residual`; both float32 [num_tokens, hidden].

    Args:
        scale_exponents: of the residual (`fixed_point.scale_exponents`).
    """
    with timer.part("router"):
        logits = kernels.linear(x, weights.router)
        expert_ids, expert_weights = kernels.route_top_k(
            logits, weights.router_bias, weights.top_k, weights.normalise, weights.scaling_factor
        )
    if recorder is not None:
        recorder.record(layer, expert_ids)
    hidden = x.bfloat16().float() if weights.rows_in_bfloat16 else x

    asked = experts.ask(layer, ExpertRows(hidden.numpy(), expert_ids, expert_weights, scale_exponents))
    with timer.part("shared_expert"):
        shared = weights.shared.forward(hidden)
    return experts.collect(asked).add_(shared).add_(residual)
