"""One pass over MoE layers, repeated as if nothing had happened when the cluster loses what it needs."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from orchestrator.dispatch.pass_lost import PassLost
from orchestrator.model.moe import ExpertRunner
from orchestrator.model.routing_recorder import Recorder


def run_pass(experts: ExpertRunner, layers: Callable[[], Tensor], recorder: Recorder | None = None) -> Tensor:
    """What `layers` gives under one view of the cluster.

    `layers` must leave nothing behind that a second call would not write again: it may write rows behind a
    cache's length, and may not commit them, choose tokens or draw random numbers.

    Raises:
        WorkerLost, WorkerRefused: the cluster cannot run any pass.
    """
    experts.begin_pass()
    while True:
        try:
            return layers()
        except PassLost as lost:
            if recorder is not None:
                recorder.drop_unfinished()
            experts.begin_pass(lost)
