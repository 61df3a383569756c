"""The routed experts that one process has in memory: views of the mapped files where those serve."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from placement.weight_format import FLOAT32, ExpertFormat, WeightFormat
from transport.expert_rows import ExpertRows
from workers.fixed_point import PartialSum
from workers.formats.checkpoint import Checkpoint, Expert, StoredMatrix
from workers.held_experts import check_experts, kept_format, matrix_shapes, partial_sum, slot_table
from workers.kernels import ExpertMatrices, ExpertNotHeld, ExpertWeights
from workers.kernels.expert_matrices import TORCH_DTYPES
from workers.memory.file_check import FileCheck
from workers.memory.mapped import MappedWatch, OnProgress, Range, bring_in, joined
from workers.memory.maps import MappedFiles
from workers.memory.pages import let_go
from workers.model_config import Step35Config

__all__ = ["ExpertNotHeld", "ExpertStore", "PartialSum", "in_one_form"]


@dataclass(frozen=True, slots=True, eq=False)
class ExpertStore:
    """Experts in memory.

    Attributes:
        experts: layer -> the ids it holds.
        top_k: the model's experts per token.
        watch: of those that are views of mapped files.
    """

    experts: Mapping[int, tuple[int, ...]]
    top_k: int
    hidden_size: int
    watch: MappedWatch
    _file_check: FileCheck
    _layers: Mapping[int, ExpertWeights]
    _no_experts: ExpertWeights

    @classmethod
    def load(
        cls,
        checkpoint: Checkpoint,
        config: Step35Config,
        experts: Mapping[int, Sequence[int]],
        *,
        formats: Mapping[int, ExpertFormat],
        on_progress: OnProgress | None = None,
    ) -> ExpertStore:
        """Have the given experts, and nothing else of the files, in memory.

        What is stored in the wanted form, or in one that gives the same bits, is a view of the mapped file.
        Other experts are converted, one at a time, into memory of their own.

        Args:
            experts: layer -> expert ids.
            formats: of each of these layers; float32 and bfloat16 can be had of float32, bfloat16, float16.
            on_progress: told how much of the mapped files is in memory.

        Raises:
            PlanError: a layer without routed experts, an id out of range or given twice.
            CheckpointError: a tensor is missing, of another shape or in another form, or a file was changed.
        """
        held = {layer: tuple(ids) for layer, ids in experts.items() if len(ids) > 0}
        check_experts(config, held)
        layers: dict[int, ExpertWeights] = {}
        mapped: list[Range] = []
        for layer, ids in held.items():
            parts = [checkpoint.expert(layer, expert, config) for expert in ids]
            kept = kept_format(parts, formats[layer], checkpoint.path)
            layers[layer] = weights = _weights(config, layer, ids, kept, parts)
            for matrices in (weights.gate, weights.up, weights.down):
                if not isinstance(matrices.data, Tensor):
                    mapped += [Range(data.data_ptr(), data.nbytes) for data in matrices.data]
        checkpoint.release()
        ranges = joined(mapped)
        bring_in(ranges, on_progress)
        return cls(
            held,
            config.moe_top_k,
            config.hidden_size,
            MappedWatch(ranges),
            FileCheck(checkpoint),
            layers,
            _weights(config, 0, (), ExpertFormat.of(FLOAT32), ()),
        )

    def forward(self, layer: int, rows: ExpertRows) -> PartialSum:
        """The held experts' share of an MoE layer's sum, on each row's fixed-point grid.

        Args:
            rows: -1 for an expert that another worker computes; bfloat16 widens exactly.

        Raises:
            ExpertNotHeld: an id that is not here.
            CheckpointError: a mapped file was changed or replaced.
        """
        if self.watch.num_bytes:
            self._file_check()
        return partial_sum(self._layers.get(layer, self._no_experts), layer, rows)

    @property
    def num_experts(self) -> int:
        """Experts of all layers together."""
        return sum(len(ids) for ids in self.experts.values())

    @property
    def held_bytes(self) -> int:
        """Memory that the matrices take, mapped or not."""
        return sum(weights.held_bytes for weights in self._layers.values())

    def notices(self) -> tuple[str, ...]:
        """See `ExpertTier.notices`."""
        notice = self.watch.notice()
        return (notice,) if notice is not None else ()


def in_one_form(layers: Iterable[int], dtype: torch.dtype) -> dict[int, ExpertFormat]:
    """All three matrices of all these layers in float32, bfloat16 or float16."""
    form = next(form for form, known in TORCH_DTYPES.items() if known is dtype)
    return dict.fromkeys(layers, ExpertFormat.of(form))


def _weights(
    config: Step35Config, layer: int, ids: Sequence[int], kept: ExpertFormat, experts: Sequence[Expert]
) -> ExpertWeights:
    """The experts `ids` of a layer, in slots of that order."""
    mapped = functools.cache(MappedFiles.now)
    gate, up, down = (
        _matrices(form, rows, columns, [expert[place] for expert in experts], mapped)
        for place, (form, (rows, columns)) in enumerate(
            zip((kept.gate, kept.up, kept.down), matrix_shapes(config), strict=True)
        )
    )
    return ExpertWeights(
        slots=slot_table(config, {expert: slot for slot, expert in enumerate(ids)}),
        gate=gate,
        up=up,
        down=down,
        limit=config.layers[layer].swiglu_limit,
        top_k=config.moe_top_k,
    )


def _matrices(
    form: WeightFormat,
    rows: int,
    columns: int,
    parts: Sequence[StoredMatrix],
    mapped: Callable[[], MappedFiles],
) -> ExpertMatrices:
    """Views where all of them are stored so, else copies; `mapped`: files that parts may be views of."""
    if parts and all(part.form == form for part in parts):
        scales = [part.scales for part in parts if part.scales is not None]
        return ExpertMatrices(form, rows, columns, [part.data for part in parts], scales or None)
    copies = ExpertMatrices.empty(form, len(parts), rows, columns)
    assert isinstance(copies.data, Tensor)
    for slot, part in zip(copies.data, parts, strict=True):
        slot.copy_(part.data)
        # The file's pages count as this process's memory until they are let go.
        source = part.data.data_ptr(), part.data.nbytes
        if mapped().place_of(*source) is not None:
            let_go(*source)
    return copies
