"""What passes must read and multiply, from a file's own tensors: the two terms of the roofline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from placement.given.kernel_rates import KernelRates
from placement.kv_size import KvForm, read_bytes
from placement.model_shape import ModelShape
from placement.weight_format import FLOAT32, FORMATS, WeightFormat
from placement.workload import HeadForms, HeadPart
from workers.formats.contents import HEAD_PARTS, Part, model_contents


@dataclass(frozen=True, slots=True)
class FileMatrix:
    """A matrix of the file: one of the head's, or one of the three of each expert of a layer."""

    form: WeightFormat
    parameters: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class HeadMatrix(FileMatrix):
    """One that every pass of the trunk reads."""

    part: HeadPart


@dataclass(frozen=True, slots=True)
class FileWork:
    """A file's matrices. `experts`: of each MoE layer, in order; `head_forms`: of each part of the head."""

    head: tuple[HeadMatrix, ...]
    experts: tuple[tuple[FileMatrix, ...], ...]
    shape: ModelShape
    head_forms: HeadForms

    @classmethod
    def of(cls, path: Path, shape: ModelShape) -> FileWork:
        """From headers alone; norms, the embedding's one row and the MTP layers are left out."""
        contents = model_contents(path)
        head = []
        experts: dict[int, dict[str, FileMatrix]] = {layer: {} for layer in shape.moe_layers}
        for tensor in contents.tensors:
            form = FORMATS[tensor.form]
            if tensor.part is Part.EXPERTS and tensor.layer is not None:
                one = tensor.num_weights // shape.num_experts, tensor.num_bytes // shape.num_experts
                experts[tensor.layer][tensor.matrix] = FileMatrix(form, *one)
            elif tensor.part is Part.ROUTERS and tensor.matrix == "router":
                # Runs keep them in float32.
                head.append(HeadMatrix(FLOAT32, tensor.num_weights, 4 * tensor.num_weights, "router"))
            elif tensor.part in HEAD_PARTS:
                part = HEAD_PARTS[tensor.part]
                head.append(HeadMatrix(form, tensor.num_weights, tensor.num_bytes, part))
        of_layers = (experts[layer] for layer in shape.moe_layers)
        matrices = tuple((e["gate"], e["up"], e["down"]) for e in of_layers)
        return cls(tuple(head), matrices, shape, contents.head_forms)

    @property
    def head_bytes(self) -> int:
        return sum(matrix.num_bytes for matrix in self.head)

    @property
    def head_bits(self) -> float:
        """Of a weight of the head on average."""
        return 8 * self.head_bytes / sum(matrix.parameters for matrix in self.head)

    @property
    def forms(self) -> set[WeightFormat]:
        return {m.form for m in self.head} | {m.form for layer in self.experts for m in layer}

    def distinct_bytes(self, chosen: NDArray[np.int64], context: int) -> int:
        """That a pass must read. `chosen`: [rows, moe_layers, top_k]; `context`: positions before it."""
        num_bytes = self.head_bytes + _kv_bytes(self.shape, context)
        for layer, matrices in enumerate(self.experts):
            num_bytes += len(np.unique(chosen[:, layer])) * sum(matrix.num_bytes for matrix in matrices)
        return num_bytes

    def multiply_s(
        self, chosen: NDArray[np.int64], rates: Mapping[str, KernelRates], *, logits_rows: int | None = None
    ) -> float:
        """Seconds of a pass's matrix products where all weights are in a cache.

        Args:
            rates: by form, measured so.
            logits_rows: rows that are given logits; None: all.
        """
        rows = len(chosen)
        seconds = 0.0
        for matrix in self.head:
            here = logits_rows if matrix.part == "output" and logits_rows is not None else rows
            seconds += 2 * matrix.parameters * rates[matrix.form.name].row_flop_s(here)
        for layer, matrices in enumerate(self.experts):
            for rows_of_expert, times in Counter(
                np.unique(chosen[:, layer], return_counts=True)[1].tolist()
            ).items():
                for expert in matrices:
                    one = 2 * expert.parameters * rates[expert.form.name].row_flop_s(rows_of_expert)
                    seconds += times * one
        return seconds


def by_form(rates: Iterable[KernelRates]) -> dict[str, KernelRates]:
    return {rate.form: rate for rate in rates}


def _kv_bytes(shape: ModelShape, context: int) -> int:
    return read_bytes(shape.attention[: shape.num_hidden_layers], KvForm.bfloat16, context)
