"""The head's weights in a card's memory: matrices as the files have them, norms and routers in float32."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from orchestrator.gpu.matrices import CardMatrices
from orchestrator.gpu.norms import CardNorm
from orchestrator.kernels import AttentionHeads
from orchestrator.model.attention import AttentionWeights
from orchestrator.model.layer import LayerWeights, NormWeights
from orchestrator.model.moe import FfnWeights, MoeWeights
from orchestrator.model.weights import HeadWeights, MtpWeights
from workers.gpu.alignment import aligned
from workers.gpu.device import Device, Memory
from workers.gpu.grids import Grids
from workers.gpu.linear import GpuMatrix
from workers.gpu.loading import Piece, Uploader
from workers.kernels import Matrices, Matrix
from workers.memory.mapped import OnProgress
from workers.memory.maps import MappedFiles


@dataclass(frozen=True, slots=True)
class CardAttention:
    """One layer's attention; `host` has its numbers, `qk_norm` is an address."""

    qkv_gate: CardMatrices
    qk_norm: int
    output: CardMatrices
    host: AttentionHeads


@dataclass(frozen=True, slots=True)
class CardFfn:
    """A SwiGLU block; limit 0 is none."""

    gate: CardMatrices
    up: CardMatrices
    down: CardMatrices
    limit: float

    @property
    def inner(self) -> int:
        return self.gate.rows


@dataclass(frozen=True, slots=True)
class CardMoe:
    """The head's part of one MoE layer; `host` has its numbers.

    `bias`: address of float32 [num_experts], or 0.
    """

    router: CardMatrices
    bias: int
    shared: CardFfn
    host: MoeWeights


@dataclass(frozen=True, slots=True)
class CardLayer:
    """One decoder layer; `index` is absolute."""

    index: int
    attention_norm: CardNorm
    attention: CardAttention
    ffn_norm: CardNorm
    ffn: CardFfn | CardMoe


@dataclass(frozen=True, slots=True)
class CardOutput:
    """A final norm and the output matrix [vocab, hidden]."""

    norm: CardNorm
    matrix: CardMatrices


@dataclass(frozen=True, slots=True)
class CardMtp:
    """One MTP layer."""

    embedding_norm: CardNorm
    hidden_norm: CardNorm
    eh_proj: CardMatrices
    layer: CardLayer
    output: CardOutput


@dataclass(frozen=True, slots=True, eq=False)
class CardWeights:
    """What of a head is on a card.

    Attributes:
        places: of the layers in the trunk.
        sources: addresses of what was copied, in RAM.
    """

    places: range
    layers: tuple[CardLayer, ...]
    output: CardOutput | None
    mtp: tuple[CardMtp, ...]
    sources: frozenset[int]
    _memory: Memory | None
    _grids: Grids

    @property
    def num_bytes(self) -> int:
        return 0 if self._memory is None else self._memory.num_bytes


def place_head(
    device: Device,
    weights: HeadWeights,
    places: range,
    *,
    has_output: bool,
    num_mtp: int,
    on_progress: OnProgress | None = None,
) -> CardWeights:
    """Bring a part of the head's weights to a card. Pages of mapped files are let go of.

    Args:
        places: of the trunk's layers.
        num_mtp: the first MTP layers.
        on_progress: told how much is there.

    Raises:
        DeviceFull: says what they take and what is free.
        DeviceLost: the card stopped working.
    """

    def all_of(shelf: _Shelf) -> CardWeights:
        layers = tuple(shelf.layer(weights.layers[place]) for place in places)
        output = shelf.output(weights.norm, weights.lm_head) if has_output else None
        mtp = tuple(shelf.mtp(of) for of in weights.mtp[:num_mtp])
        sources = frozenset(piece.source.data_ptr() for piece in shelf.pieces)
        return CardWeights(places, layers, output, mtp, sources, shelf.memory, grids)

    grids = Grids.upload(device)
    measure = _Shelf(grids, None)
    nothing = all_of(measure)
    if measure.used == 0:
        return nothing
    shelf = _Shelf(grids, device.allocate(measure.used))
    placed = all_of(shelf)
    Uploader(device).copy_all(shelf.pieces, on_progress)
    return placed


class _Shelf:
    """Hands out places in one stretch of memory, side by side; without memory it only counts."""

    def __init__(self, grids: Grids, memory: Memory | None) -> None:
        self.memory = memory
        self.used = 0
        self.pieces: list[Piece] = []
        self._grids = grids
        self._mapped = MappedFiles.now()
        self._known: dict[tuple[int, int], int] = {}

    def put(self, tensor: Tensor) -> int:
        """The address of a copy; equal places have one."""
        key = tensor.data_ptr(), tensor.nbytes
        if key in self._known:
            return self._known[key]
        start = 0 if self.memory is None else self.memory.address
        address = start + self.used
        self.used += aligned(tensor.nbytes)
        is_mapped = self._mapped.place_of(*key) is not None
        self.pieces.append(Piece(tensor.contiguous(), tensor.dtype, address, is_mapped))
        self._known[key] = address
        return address

    def matrix(self, matrix: Matrix) -> GpuMatrix:
        data = self.put(matrix.data)
        scales = 0 if matrix.scales is None else self.put(matrix.scales)
        table, scale_table = (self.put(torch.tensor([at], dtype=torch.int64)) for at in (data, scales))
        return GpuMatrix(
            matrix.form,
            matrix.rows,
            matrix.columns,
            table,
            scale_table if scales else 0,
            self._grids.address(matrix.form.name),
        )

    def matrices(self, matrices: Matrices | Matrix) -> CardMatrices:
        each = (matrices,) if isinstance(matrices, Matrix) else matrices.each
        return CardMatrices(tuple(self.matrix(one) for one in each), matrices.rows, matrices.columns)

    def norm(self, norm: NormWeights) -> CardNorm:
        return CardNorm(self.put(norm.weight), norm.eps, norm.zero_centered)

    def attention(self, weights: AttentionWeights) -> CardAttention:
        return CardAttention(
            self.matrices(weights.qkv_gate),
            self.put(weights.heads.qk_norm),
            self.matrices(weights.output),
            weights.heads,
        )

    def ffn(self, weights: FfnWeights) -> CardFfn:
        return CardFfn(
            self.matrices(weights.gate), self.matrices(weights.up), self.matrices(weights.down), weights.limit
        )

    def moe(self, weights: MoeWeights) -> CardMoe:
        bias = 0 if weights.router_bias is None else self.put(weights.router_bias)
        return CardMoe(self.matrices(weights.router), bias, self.ffn(weights.shared), weights)

    def layer(self, weights: LayerWeights) -> CardLayer:
        ffn = weights.ffn
        return CardLayer(
            weights.index,
            self.norm(weights.attention_norm),
            self.attention(weights.attention),
            self.norm(weights.ffn_norm),
            self.moe(ffn) if isinstance(ffn, MoeWeights) else self.ffn(ffn),
        )

    def output(self, norm: NormWeights, matrix: Matrices) -> CardOutput:
        return CardOutput(self.norm(norm), self.matrices(matrix))

    def mtp(self, weights: MtpWeights) -> CardMtp:
        return CardMtp(
            self.norm(weights.embedding_norm),
            self.norm(weights.hidden_norm),
            self.matrices(weights.eh_proj),
            self.layer(weights.layer),
            self.output(weights.head_norm, weights.head),
        )
