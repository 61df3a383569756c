"""Routed experts without a dispatcher: the oracle of what asking, splitting and adding up must give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from orchestrator.dispatch.pass_lost import PassLost
from orchestrator.model.step35 import Step35Model
from transport.expert_rows import ExpertRows
from workers import fixed_point
from workers.formats.safetensors import SafetensorsCheckpoint
from workers.model_config import Step35Config
from workers.store import ExpertStore, in_one_form


class PlainExperts:
    """An `ExpertRunner` that computes each row alone, on coarser and coarser grids until it fits."""

    def __init__(self, store: ExpertStore) -> None:
        self._store = store

    def begin_pass(self, lost: PassLost | None = None) -> None:
        """One process never loses an expert."""

    def ask(self, layer: int, rows: ExpertRows) -> tuple[int, ExpertRows]:
        return layer, rows

    def collect(self, asked: tuple[int, ExpertRows]) -> Tensor:
        layer, rows = asked
        return torch.cat([self._row(layer, rows.at(np.array([row]))) for row in range(rows.num_rows)])

    def _row(self, layer: int, row: ExpertRows) -> Tensor:
        for _ in range(1 + fixed_point.MAX_COARSENINGS):
            part = self._store.forward(layer, row)
            if not part.saturated.any():
                return fixed_point.to_float32(part.values, row.scale_exponents)
            row = row._replace(scale_exponents=fixed_point.coarser(row.scale_exponents))
        raise AssertionError(f"layer {layer}: not finite")


def plain_model(model_dir: Path, dtype: torch.dtype = torch.float32) -> Step35Model:
    """Head and all experts of a checkpoint, in this process, without a dispatcher."""
    config, checkpoint = Step35Config.load(model_dir), SafetensorsCheckpoint.open(model_dir)
    everything = {layer: range(config.moe_num_experts) for layer in config.moe_layers}
    store = ExpertStore.load(checkpoint, config, everything, formats=in_one_form(everything, dtype))
    return Step35Model.load(checkpoint, config, dtype, PlainExperts(store))
