"""Counts distinct experts of each request, which the dispatcher itself does not."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from orchestrator.dispatch.debts import Ask
from orchestrator.dispatch.dispatcher import Dispatcher, unwatched
from placement.patience import Patience
from placement.plan import Plan
from transport.client import WorkerClient
from workers.tiers import ExpertTier


class CountingDispatcher(Dispatcher):
    """The dispatcher, which here counts what it asks for in more detail: for one run that is not timed."""

    def __init__(
        self, plan: Plan, local: ExpertTier | None, clients: Mapping[str, WorkerClient], *, max_rows: int
    ) -> None:
        # The simulator knows no late answers.
        patience = Patience(hedge_floor_s=math.inf, slow_factor=math.inf)
        super().__init__(*unwatched(plan, clients), local=local, max_rows=max_rows, patience=patience)
        self.experts_read = [0] * len(plan.workers)

    def _count(self, ask: Ask) -> None:
        super()._count(ask)
        self.experts_read[ask.worker] += len(np.unique(ask.expert_ids[ask.expert_ids >= 0]))
