"""Attention of a pass's rows, each over its sequence's pages of keys and values, which they get into first.

docs/attention.md has a page's layout and the order of the sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, empty

from placement.kv_size import PAGE_POSITIONS, KvForm, KvShape, pages_of
from workers.kernels import native
from workers.kernels.native import (
    PAGES_NOT_HELD,
    AttentionHeadsArgs,
    RotationArgs,
    SequenceRowsArgs,
    address,
    check,
    mismatch,
    num_threads,
    raise_if_failed,
)

PageTables = NDArray[np.int64]
_INT64 = np.dtype(np.int64)
_FORMS = {KvForm.float32: 0, KvForm.bfloat16: 1, KvForm.int8: 2}


@dataclass(frozen=True, slots=True, eq=False)
class AttentionHeads:
    """One layer's heads, ready to run.

    A query or key row x becomes x / sqrt(mean(x^2) + eps) times its qk_norm, then it is rotated. A query sees
    the keys at positions up to its own, the last `window` of them (its own included) where window > 0.

    Attributes:
        qk_norm: float32 [num_heads + num_kv_heads, head_dim]; queries first.
        has_gate: a head's output is multiplied by the sigmoid of a logit of its own.
        width: of a projected row: query, key and value heads, and the gates' logits.

    Raises:
        ValueError: num_heads is no multiple of num_kv_heads, or the window is below 0.
    """

    qk_norm: Tensor
    num_kv_heads: int
    window: int
    scale: float
    eps: float
    has_gate: bool
    num_heads: int = field(init=False)
    head_dim: int = field(init=False)
    width: int = field(init=False)
    arguments: AttentionHeadsArgs = field(init=False)

    def __post_init__(self) -> None:
        # Every layer of every pass reads them, so they are no properties.
        rows, head_dim = check(self.qk_norm).shape
        num_heads = rows - self.num_kv_heads
        if self.num_kv_heads < 1 or num_heads < 1 or num_heads % self.num_kv_heads or self.window < 0:
            raise ValueError(
                f"attention: {num_heads} heads, {self.num_kv_heads} of keys and values, window {self.window}"
            )
        width = (num_heads + 2 * self.num_kv_heads) * head_dim + (num_heads if self.has_gate else 0)
        arguments = AttentionHeadsArgs(
            qk_norm=self.qk_norm.data_ptr(),
            num_heads=num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=head_dim,
            window=self.window,
            scale=self.scale,
            eps=self.eps,
            has_gate=self.has_gate,
        )
        object.__setattr__(self, "num_heads", num_heads)
        object.__setattr__(self, "head_dim", head_dim)
        object.__setattr__(self, "width", width)
        object.__setattr__(self, "arguments", arguments)


@dataclass(frozen=True, slots=True, eq=False)
class Rotation:
    """How far queries and keys of positions from 0 on are rotated.

    Pairs (d, d + half), d < half, are: x_d * cos_d + x_partner * sin_d. Dimensions from 2 * half on are not.

    Attributes:
        cos, sin: float32 [positions, 1, head_dim]; the first of a pair has its sine negated.

    Raises:
        ValueError: shapes that do not fit.
    """

    cos: Tensor
    sin: Tensor
    half: int
    num_positions: int = field(init=False)
    head_dim: int = field(init=False)
    arguments: RotationArgs = field(init=False)

    def __post_init__(self) -> None:
        positions, _, head_dim = self.cos.shape
        if self.cos.shape != (positions, 1, head_dim) or self.sin.shape != self.cos.shape:
            raise mismatch("rotation", cos=self.cos, sin=self.sin)
        if not 0 <= 2 * self.half <= head_dim:
            raise ValueError(f"rotation: {self.half} pairs of {head_dim} dimensions")
        arguments = RotationArgs(check(self.cos).data_ptr(), check(self.sin).data_ptr(), self.half)
        object.__setattr__(self, "num_positions", positions)
        object.__setattr__(self, "head_dim", head_dim)
        object.__setattr__(self, "arguments", arguments)


class SequenceRows(NamedTuple):
    """One sequence's rows in a pass: `num_rows` of them, from `position` on.

    Attributes:
        tables: int64 [layers, pages], addresses; entry i of a layer is the page of positions from
            i * PAGE_POSITIONS on, 0 where it is not held.
    """

    tables: PageTables
    position: int
    num_rows: int


class PassRows:
    """The rows of a pass, one sequence's after another's, for all layers.

    A sequence occurs at most once, since its rows read what the call writes.

    Attributes:
        shapes: of each layer's keys and values, in all sequences.
        num_rows: of all sequences.
        stop: behind the largest position.
        arguments: for the kernel, which reads the tables at each layer; they must not move meanwhile.
    """

    __slots__ = ("_sequences", "arguments", "num_rows", "shapes", "stop")

    def __init__(self, shapes: Sequence[KvShape], sequences: Sequence[SequenceRows]) -> None:
        """
        Raises:
            ValueError: tables of another type or number of layers, no rows, or positions beyond the tables.
        """
        self.shapes = shapes
        self.num_rows = self.stop = 0
        self._sequences = sequences
        arguments = []
        for tables, position, num_rows in sequences:
            num_layers, most_pages = tables.shape
            stop = position + num_rows
            if num_layers != len(shapes):
                raise ValueError(f"attention: page tables of {num_layers} layers, expected {len(shapes)}")
            if position < 0 or num_rows < 1 or stop > most_pages * PAGE_POSITIONS:
                raise ValueError(
                    f"attention: positions {position} to {stop - 1} are needed, but the page tables have "
                    f"{most_pages} pages"
                )
            arguments.append(SequenceRowsArgs(address(tables, _INT64), most_pages, position, num_rows))
            self.num_rows += num_rows
            self.stop = max(self.stop, stop)
        self.arguments = (SequenceRowsArgs * len(arguments))(*arguments)

    def lacking(self, layer: int, window: int) -> ValueError:
        """Says which positions a layer needs whose pages are not all held."""
        for tables, position, num_rows in self._sequences:
            start, stop = max(0, position + 1 - window) if window else 0, position + num_rows
            if not tables[layer, start // PAGE_POSITIONS : pages_of(stop)].all():
                return ValueError(
                    f"attention: positions {start} to {stop - 1} are needed, but their pages are not all held"
                )
        raise AssertionError("the kernel lacks pages that all tables have")


def attention(qkv: Tensor, heads: AttentionHeads, rotation: Rotation, rows: PassRows, layer: int) -> Tensor:
    """Causal softmax attention of each row over its sequence's pages, where its own key and value go first.

    A row's result does not depend on who else is in the pass.

    Args:
        qkv: [rows, at least heads.width] float32: query, key and value heads, then the gates' logits.
        rotation: of the rows' positions and all before them.
        layer: which one of those of `rows`.

    Returns:
        [rows, num_heads * head_dim] float32.

    Raises:
        ValueError: shapes do not fit, or pages of keys and values that a row sees are not held.
    """
    T, width = qkv.shape
    if not 0 <= layer < len(rows.shapes):
        raise ValueError(f"attention: layer {layer} of {len(rows.shapes)}")
    kv = rows.shapes[layer]
    if (
        rows.num_rows != T
        or width < heads.width
        or kv.num_kv_heads != heads.num_kv_heads
        or kv.head_dim != heads.head_dim
        or rotation.head_dim != heads.head_dim
        or rotation.num_positions < rows.stop
    ):
        raise ValueError(
            f"attention: shapes do not fit: qkv {list(qkv.shape)}, qk_norm {list(heads.qk_norm.shape)}, "
            f"cos {list(rotation.cos.shape)}, {kv}, {rows.num_rows} rows up to position {rows.stop - 1}"
        )
    out = empty(T, heads.num_heads * heads.head_dim)
    status = native.attention(
        check(qkv).data_ptr(),
        width,
        heads.arguments,
        rotation.arguments,
        rows.arguments,
        len(rows.arguments),
        layer,
        _FORMS[kv.form],
        out.data_ptr(),
        num_threads(),
    )
    if status == PAGES_NOT_HELD:
        raise rows.lacking(layer, heads.window)
    raise_if_failed(status)
    return out
