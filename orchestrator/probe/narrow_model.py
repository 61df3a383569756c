"""A model of random weights in memory, so narrow that what its passes take is software."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from orchestrator.dispatch.pass_lost import PassLost
from orchestrator.kernels import AttentionHeads
from orchestrator.model.attention import AttentionWeights
from orchestrator.model.kv_pool import KvPool
from orchestrator.model.layer import LayerWeights, NormWeights
from orchestrator.model.moe import FfnWeights, MoeWeights
from orchestrator.model.step35 import Step35Model
from orchestrator.model.weights import HeadWeights, MtpWeights
from orchestrator.probe.narrow_shape import (
    EPS,
    EXPERTS,
    HEAD_DIM,
    HEADS,
    HIDDEN,
    KV_HEADS,
    LAYERS,
    TOP_K,
    VOCABULARY,
    WIDTH,
    narrow_config,
)
from placement.kv_size import KvForm
from placement.weight_format import FLOAT32
from transport.expert_rows import ExpertRows
from workers.formats.checkpoint import StoredMatrix
from workers.kernels import Matrices, Matrix
from workers.model_config import LayerConfig

_POOL_BYTES = 256 << 20
_BETWEEN_BYTES = 4 << 20
"""What is read in each MoE layer, where a step's experts pass: the head's code and weights turn cold."""


@dataclass(slots=True)
class NoExperts:
    """An `ExpertRunner` whose sums are zero and whose time is left out.

    `asleep_s`: how long it then waits in each layer, as for other boxes.
    """

    other: Tensor = field(default_factory=lambda: torch.ones(16, _BETWEEN_BYTES // 4))
    asleep_s: float = 0.0
    turn: int = 0
    spent_s: float = 0.0

    def begin_pass(self, lost: PassLost | None = None) -> None:
        """Nothing to settle."""

    def ask(self, layer: int, rows: ExpertRows) -> ExpertRows:
        started = time.perf_counter()
        self.turn += 1
        self.other[self.turn % len(self.other)].sum()
        if self.asleep_s:
            time.sleep(self.asleep_s)
        self.spent_s += time.perf_counter() - started
        return rows

    def collect(self, asked: ExpertRows) -> Tensor:
        return torch.zeros(asked.num_rows, HIDDEN)

    def collect_on_grid(self, asked: ExpertRows) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        return np.zeros((asked.num_rows, HIDDEN), np.int32), asked.scale_exponents

    def count_own(self, pairs: int) -> None:
        """Nobody asks."""

    def timed(self, action: Callable[[], object]) -> float:
        """Seconds of `action` without what is read in between."""
        before_s, started = self.spent_s, time.perf_counter()
        action()
        return time.perf_counter() - started - (self.spent_s - before_s)


def narrow_model(experts: NoExperts) -> Step35Model:
    """The same weights at every call."""
    config, random = narrow_config(), _Random()
    weights = HeadWeights(
        embedding=StoredMatrix(
            "embedding", FLOAT32, VOCABULARY, HIDDEN, random.tensor(VOCABULARY, HIDDEN, size=1.0)
        ),
        layers=tuple(_layer(layer, random) for layer in config.layers[:LAYERS]),
        norm=_norm(),
        lm_head=random.matrices(VOCABULARY, HIDDEN),
        mtp=tuple(_mtp(layer, random) for layer in config.layers[LAYERS:]),
        trunk_matrices=(),
        mtp_matrices=(),
    )
    return Step35Model(
        config, weights, torch.float32, experts, kv_form=KvForm.bfloat16, kv_pool=KvPool(_POOL_BYTES)
    )


class _Random:
    def __init__(self) -> None:
        self._numbers = np.random.default_rng(0)

    def tensor(self, rows: int, columns: int, size: float | None = None) -> Tensor:
        """Numbers of a deviation that keeps a row's size, or of `size`."""
        deviation = np.float32(columns**-0.5 if size is None else size)
        return torch.from_numpy(self._numbers.standard_normal((rows, columns), np.float32) * deviation)

    def matrix(self, rows: int, columns: int) -> Matrix:
        return Matrix.of(self.tensor(rows, columns))

    def matrices(self, rows: int, columns: int) -> Matrices:
        return Matrices.of(self.matrix(rows, columns))


def _norm() -> NormWeights:
    return NormWeights(torch.zeros(HIDDEN), EPS, True)


def _ffn(random: _Random) -> FfnWeights:
    return FfnWeights(
        random.matrix(WIDTH, HIDDEN), random.matrix(WIDTH, HIDDEN), random.matrix(HIDDEN, WIDTH), 0.0
    )


def _layer(layer: LayerConfig, random: _Random) -> LayerWeights:
    ffn: FfnWeights | MoeWeights = _ffn(random)
    if layer.is_moe:
        ffn = MoeWeights(
            router=random.matrices(EXPERTS, HIDDEN),
            router_bias=torch.zeros(EXPERTS),
            shared=_ffn(random),
            top_k=TOP_K,
            normalise=True,
            scaling_factor=1.0,
            rows_in_bfloat16=True,
        )
    widths = (HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM, HEADS)
    attention = AttentionWeights(
        qkv_gate=Matrices.of(*(random.matrix(rows, HIDDEN) for rows in widths)),
        heads=AttentionHeads(
            torch.ones(HEADS + KV_HEADS, HEAD_DIM),
            KV_HEADS,
            window=0,
            scale=HEAD_DIM**-0.5,
            eps=EPS,
            has_gate=True,
        ),
        output=random.matrices(HIDDEN, HEADS * HEAD_DIM),
    )
    return LayerWeights(layer.index, _norm(), attention, _norm(), ffn)


def _mtp(layer: LayerConfig, random: _Random) -> MtpWeights:
    return MtpWeights(
        embedding_norm=_norm(),
        hidden_norm=_norm(),
        eh_proj=random.matrices(HIDDEN, 2 * HIDDEN),
        layer=_layer(layer, random),
        head_norm=_norm(),
        head=random.matrices(VOCABULARY, HIDDEN),
    )
