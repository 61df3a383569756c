"""The routed experts that one process has in memory: views of the mapped files where those serve."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from placement.experts import Experts
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

    experts: Experts
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
        store = cls._looked_up(checkpoint, config, experts, formats)
        bring_in(store.watch.ranges, on_progress)
        return store

    @classmethod
    def views(
        cls,
        checkpoint: Checkpoint,
        config: Step35Config,
        experts: Mapping[int, Sequence[int]],
        *,
        formats: Mapping[int, ExpertFormat],
    ) -> ExpertStore | None:
        """Experts of the mapped files of which nothing is read before it is used.

        None where one would be a copy. Arguments and errors as `load`.
        """
        for layer, ids in experts.items():
            for expert in ids:
                for part, form in zip(
                    checkpoint.expert(layer, expert, config),
                    (formats[layer].gate, formats[layer].up, formats[layer].down),
                    strict=True,
                ):
                    if part.form.kept_as(form) != part.form:
                        return None
        return cls._looked_up(checkpoint, config, experts, formats)

    @classmethod
    def _looked_up(
        cls,
        checkpoint: Checkpoint,
        config: Step35Config,
        experts: Mapping[int, Sequence[int]],
        formats: Mapping[int, ExpertFormat],
    ) -> ExpertStore:
        held = {layer: tuple(ids) for layer, ids in experts.items() if len(ids) > 0}
        check_experts(config, held)
        layers: dict[int, ExpertWeights] = {}
        for layer, ids in held.items():
            parts = [checkpoint.expert(layer, expert, config) for expert in ids]
            kept = kept_format(parts, formats[layer], checkpoint.path)
            layers[layer] = _weights(config, layer, ids, kept, parts)
        checkpoint.release()
        return cls(
            held,
            config.moe_top_k,
            config.hidden_size,
            MappedWatch(_mapped_ranges(layers.values())),
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

    def fits_beside(self, other: ExpertStore) -> bool:
        """Whether `joined` can make one of the two: a layer of both has its matrices in one form in each."""
        shared = self._layers.keys() & other._layers.keys()
        return all(
            (mine.form, isinstance(mine.data, Tensor)) == (others.form, isinstance(others.data, Tensor))
            for layer in shared
            for mine, others in zip(
                _matrices_of(self._layers[layer]), _matrices_of(other._layers[layer]), strict=True
            )
        )

    def joined(self, other: ExpertStore) -> ExpertStore:
        """The experts of both, of one model, none of them in both; nothing mapped is copied.

        Copies of a layer that both have are copied once more.
        """
        layers = {**self._layers, **other._layers}
        experts = {**self.experts, **other.experts}
        for layer in self._layers.keys() & other._layers.keys():
            mine, others = self._layers[layer], other._layers[layer]
            experts[layer] = ids = self.experts[layer] + other.experts[layer]
            pairs = zip(_matrices_of(mine), _matrices_of(others), strict=True)
            layers[layer] = _same_layer(mine, ids, [_side_by_side(*pair) for pair in pairs])
        return self._of(experts, layers)

    def without(self, experts: Mapping[int, Collection[int]]) -> ExpertStore:
        """What is left when some experts go; what this store does not hold is passed over.

        Mapped pages that were theirs leave this process's memory, copies when this store does.
        """
        held, layers = dict(self.experts), dict(self._layers)
        for layer in held.keys() & experts.keys():
            ids = held.pop(layer)
            weights = layers.pop(layer)
            gone = set(experts[layer])
            slots = [slot for slot, expert in enumerate(ids) if expert not in gone]
            for matrices in _matrices_of(weights):
                if not isinstance(matrices.data, Tensor):
                    for slot in set(range(len(ids))).difference(slots):
                        let_go(matrices.data[slot].data_ptr(), matrices.data[slot].nbytes)
            if slots:
                held[layer] = left = tuple(ids[slot] for slot in slots)
                kept = [_some(matrices, slots) for matrices in _matrices_of(weights)]
                layers[layer] = _same_layer(weights, left, kept)
        return self._of(held, layers)

    def _of(self, experts: Experts, layers: Mapping[int, ExpertWeights]) -> ExpertStore:
        watch = MappedWatch(_mapped_ranges(layers.values()))
        return dataclasses.replace(self, experts=experts, _layers=layers, watch=watch)

    def weights_of(self, layer: int) -> ExpertWeights | None:
        """A layer's experts as the kernels read them; None where none of the layer is held."""
        return self._layers.get(layer)

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


def _matrices_of(weights: ExpertWeights) -> tuple[ExpertMatrices, ExpertMatrices, ExpertMatrices]:
    return weights.gate, weights.up, weights.down


def _mapped_ranges(layers: Iterable[ExpertWeights]) -> tuple[Range, ...]:
    """Of those that are views of mapped files."""
    return joined(
        Range(data.data_ptr(), data.nbytes)
        for weights in layers
        for matrices in _matrices_of(weights)
        if not isinstance(matrices.data, Tensor)
        for data in matrices.data
    )


def _side_by_side(first: ExpertMatrices, second: ExpertMatrices) -> ExpertMatrices:
    """Slots of the first, then those of the second, both in one form."""
    data: Tensor | list[Tensor]
    if isinstance(first.data, Tensor) and isinstance(second.data, Tensor):
        data = torch.cat((first.data, second.data))
    else:
        data = [*first.data, *second.data]
    scales = None
    if first.scales is not None and second.scales is not None:
        scales = [*first.scales, *second.scales]
    return ExpertMatrices(first.form, first.rows, first.columns, data, scales)


def _some(matrices: ExpertMatrices, slots: Sequence[int]) -> ExpertMatrices:
    """Only these slots, in this order; copies are copied, so that the others' memory can be freed."""
    data: Tensor | list[Tensor]
    if isinstance(matrices.data, Tensor):
        data = matrices.data[torch.tensor(slots)]
    else:
        data = [matrices.data[slot] for slot in slots]
    scales = None if matrices.scales is None else [matrices.scales[slot] for slot in slots]
    return ExpertMatrices(matrices.form, matrices.rows, matrices.columns, data, scales)


def _same_layer(
    weights: ExpertWeights, ids: Sequence[int], matrices: Sequence[ExpertMatrices]
) -> ExpertWeights:
    """The layer of `weights` with other experts: `ids` in slots of that order."""
    slots = torch.full_like(weights.slots, -1)
    slots[list(ids)] = torch.arange(len(ids), dtype=slots.dtype)
    gate, up, down = matrices
    return ExpertWeights(slots, gate, up, down, weights.limit, weights.top_k)


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
