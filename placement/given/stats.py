"""Routing statistics: how often each expert was chosen, and optionally the choices themselves."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from placement.errors import RoutingFileError
from placement.files.atomic import replacing
from placement.files.numpy_file import read_npz
from placement.files.quote import quote
from placement.model_shape import ModelShape

ROUTING_FORMAT = "potluck-routing"
ROUTING_VERSION = 1

# Of a trace whose experts are sorted, so that memory stays bounded.
_TOKENS_AT_ONCE = 16_384
_REQUIRED = (
    "format",
    "version",
    "model",
    "fingerprint",
    "moe_layers",
    "top_k",
    "num_tokens",
    "counts",
    "source",
)
_TRACE = "trace"
_EXPECTED = "a routing file: `potluck stats` writes one"
# Of all arrays but the trace: counts of eight thousand experts in each of a thousand layers.
_MOST_BYTES_BUT_TRACE = 2**26


@dataclass(frozen=True, slots=True, eq=False)
class RoutingStats:
    """Experts chosen by a model's routers over some text.

    `counts`: uint64 [num_moe_layers, num_experts]; every row sums to num_tokens * top_k.
    `trace`: uint16 [num_tokens, num_moe_layers, top_k], the chosen experts token by token, or None.
    `moe_layers` are the absolute indices of the rows. `source` says in words where the text came from.
    """

    model: str
    fingerprint: str
    moe_layers: tuple[int, ...]
    top_k: int
    num_tokens: int
    counts: NDArray[np.uint64]
    trace: NDArray[np.uint16] | None
    source: str

    @classmethod
    def from_trace(cls, shape: ModelShape, trace: ArrayLike, source: str) -> RoutingStats:
        """Statistics of chosen experts, `trace`: int [num_tokens, num_moe_layers, top_k].

        Raises:
            RoutingFileError: another shape, or an expert that the model does not have.
        """
        chosen = np.asarray(trace)
        expected = (shape.num_moe_layers, shape.top_k)
        if chosen.ndim != 3 or chosen.shape[1:] != expected:
            raise RoutingFileError(
                f"trace of {source}: expected shape [tokens, {expected[0]}, {expected[1]}], "
                f"found {list(chosen.shape)}"
            )
        _check_whole_numbers(chosen, "trace", source, shape.num_experts - 1)
        chosen = chosen.astype(np.uint16, copy=False)
        counts = count_experts(chosen, shape.num_experts)
        return cls(
            shape.name, shape.fingerprint, shape.moe_layers, shape.top_k, len(chosen), counts, chosen, source
        )

    @classmethod
    def from_counts(cls, shape: ModelShape, counts: ArrayLike, num_tokens: int, source: str) -> RoutingStats:
        """Statistics without a trace, `counts`: int [num_moe_layers, num_experts].

        Raises:
            RoutingFileError: another shape, negative or fractional numbers, or a row that does not sum to
                num_tokens * top_k.
        """
        array = np.asarray(counts)
        _check_counts(array, (shape.num_moe_layers, shape.num_experts), num_tokens, shape.top_k, source)
        return cls(
            shape.name,
            shape.fingerprint,
            shape.moe_layers,
            shape.top_k,
            num_tokens,
            array.astype(np.uint64),
            None,
            source,
        )

    @property
    def num_experts(self) -> int:
        return int(self.counts.shape[1])

    def frequencies(self) -> NDArray[np.float64]:
        """float64 [num_moe_layers, num_experts]: share of tokens that chose the expert; rows sum to top_k."""
        frequencies: NDArray[np.float64] = self.counts / max(self.num_tokens, 1)
        return frequencies

    def check(self, shape: ModelShape, where: str = "routing statistics") -> None:
        """Raise RoutingFileError unless the statistics are of a model of this shape."""
        self.check_fingerprint(
            shape.fingerprint,
            f"{shape.name} ({shape.num_moe_layers} x {shape.num_experts}, top {shape.top_k})",
            where,
        )

    def check_fingerprint(self, fingerprint: str, model: str, where: str = "routing statistics") -> None:
        """Raise RoutingFileError unless they are of the shape with this fingerprint."""
        if self.fingerprint == fingerprint:
            return
        rows, experts = self.counts.shape
        raise RoutingFileError(
            f"{where}: made for {quote(self.model)} ({rows} x {experts}, top {self.top_k}, fingerprint "
            f"{quote(self.fingerprint)}), expected {model}, fingerprint {fingerprint}; "
            "run `potluck stats` with this model"
        )

    def merge(self, other: RoutingStats) -> RoutingStats:
        """Both together; the trace stays only if both have one.

        Raises:
            RoutingFileError: statistics of different models.
        """
        if other.fingerprint != self.fingerprint:
            raise RoutingFileError(
                f"cannot merge statistics of {self.model} ({self.fingerprint}) with those of "
                f"{other.model} ({other.fingerprint}): expected the same model shape"
            )
        trace = None
        if self.trace is not None and other.trace is not None:
            trace = np.concatenate([self.trace, other.trace])
        return RoutingStats(
            model=self.model,
            fingerprint=self.fingerprint,
            moe_layers=self.moe_layers,
            top_k=self.top_k,
            num_tokens=self.num_tokens + other.num_tokens,
            counts=self.counts + other.counts,
            trace=trace,
            source="; ".join(dict.fromkeys([self.source, other.source])),
        )

    def without_trace(self) -> RoutingStats:
        """The counts alone: a small file to ship."""
        return RoutingStats(
            self.model,
            self.fingerprint,
            self.moe_layers,
            self.top_k,
            self.num_tokens,
            self.counts,
            None,
            self.source,
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the `.npz` described in docs/formats.md; an existing file is replaced in one step."""
        with replacing(path) as file:
            np.savez_compressed(file, **self.arrays())

    def arrays(self) -> dict[str, Any]:
        """What a routing file holds, by name."""
        arrays: dict[str, Any] = {
            "format": np.array(ROUTING_FORMAT),
            "version": np.array(ROUTING_VERSION, dtype=np.int64),
            "model": np.array(self.model),
            "fingerprint": np.array(self.fingerprint),
            "moe_layers": np.array(self.moe_layers, dtype=np.int32),
            "top_k": np.array(self.top_k, dtype=np.int64),
            "num_tokens": np.array(self.num_tokens, dtype=np.int64),
            "counts": self.counts,
            "source": np.array(self.source),
        }
        if self.trace is not None:
            arrays[_TRACE] = self.trace
        return arrays

    @classmethod
    def load(cls, path: str | os.PathLike[str], shape: ModelShape | None = None) -> RoutingStats:
        """Read and check a routing file; with `shape`, of that model only.

        Raises:
            RoutingFileError: unreadable, a missing array, another shape or model, NaN, negative or
                fractional counts, counts that disagree with the trace.
        """
        arrays = read_npz(
            path, RoutingFileError, _EXPECTED, wanted=_REQUIRED, most_bytes=_MOST_BYTES_BUT_TRACE
        )
        for name in _REQUIRED:
            if name not in arrays:
                found = ", ".join(sorted(arrays)) or "none of a routing file"
                raise RoutingFileError(f"{path}: expected an array {name!r}, found {found}")
        found_format = _text(arrays, "format", path)
        if found_format != ROUTING_FORMAT:
            raise RoutingFileError(
                f"{path}: format: expected {ROUTING_FORMAT!r}, found {quote(found_format)}"
            )
        version = _integer(arrays, "version", path)
        if version != ROUTING_VERSION:
            raise RoutingFileError(f"{path}: version: expected {ROUTING_VERSION}, found {version}")

        moe_layers = arrays["moe_layers"]
        if moe_layers.ndim != 1 or moe_layers.dtype.kind not in "iu" or not np.all(np.diff(moe_layers) > 0):
            raise RoutingFileError(
                f"{path}: moe_layers: expected ascending whole numbers, found {moe_layers.dtype} "
                f"{quote(moe_layers[:20].tolist() if moe_layers.ndim else moe_layers.item())}"
            )
        counts = arrays["counts"]
        top_k = _integer(arrays, "top_k", path)
        num_tokens = _integer(arrays, "num_tokens", path)
        num_experts = counts.shape[-1] if counts.ndim else 0
        if not 0 < top_k <= num_experts:
            raise RoutingFileError(f"{path}: top_k: expected 1 to {num_experts} (the experts), found {top_k}")
        stats = cls(
            model=_text(arrays, "model", path),
            fingerprint=_text(arrays, "fingerprint", path),
            moe_layers=tuple(moe_layers.tolist()),
            top_k=top_k,
            num_tokens=num_tokens,
            counts=counts,
            trace=None,
            source=_text(arrays, "source", path),
        )
        if shape is not None and counts.ndim == 2:
            stats.check(shape, str(path))
        expected_rows = (len(moe_layers), shape.num_experts if shape else num_experts)
        _check_counts(counts, expected_rows, num_tokens, top_k, path)
        trace = read_npz(path, RoutingFileError, _EXPECTED, wanted=(_TRACE,)).get(_TRACE)
        _check_trace(replace(stats, trace=trace), path)
        trace = None if trace is None else trace.astype(np.uint16, copy=False)
        return cls(
            stats.model,
            stats.fingerprint,
            stats.moe_layers,
            top_k,
            num_tokens,
            counts.astype(np.uint64, copy=False),
            trace,
            stats.source,
        )


def count_experts(trace: NDArray[np.integer], num_experts: int) -> NDArray[np.uint64]:
    """Choices of each expert, uint64 [num_layers, num_experts], in `trace` [tokens, num_layers, top_k]."""
    num_layers = trace.shape[1]
    counts = np.zeros((num_layers, num_experts), dtype=np.uint64)
    for layer in range(num_layers):
        counts[layer] = np.bincount(trace[:, layer].ravel(), minlength=num_experts)
    return counts


def _text(arrays: Mapping[str, NDArray[Any]], name: str, path: object) -> str:
    value = arrays[name]
    if value.ndim or value.dtype.kind != "U":
        raise RoutingFileError(f"{path}: {name}: expected text, found {value.dtype} {list(value.shape)}")
    return str(value)


def _integer(arrays: Mapping[str, NDArray[Any]], name: str, path: object) -> int:
    value = arrays[name]
    if value.ndim or value.dtype.kind not in "iu" or value < 0:
        found = quote(value.item()) if value.ndim == 0 else list(value.shape)
        raise RoutingFileError(f"{path}: {name}: expected one whole number, found {value.dtype} {found}")
    return int(value)


def _check_whole_numbers(array: NDArray[Any], name: str, where: object, largest: int | None) -> None:
    if array.dtype.kind not in "iu":
        detail = ", with NaN" if array.dtype.kind == "f" and np.isnan(array).any() else ""
        raise RoutingFileError(f"{where}: {name}: expected whole numbers, found {array.dtype}{detail}")
    if array.size and array.min() < 0:
        raise RoutingFileError(f"{where}: {name}: expected no negative number, found {array.min()}")
    if largest is not None and array.size and array.max() > largest:
        raise RoutingFileError(f"{where}: {name}: expected experts up to {largest}, found {array.max()}")


def _check_counts(
    counts: NDArray[Any], expected: tuple[int, int], num_tokens: int, top_k: int, where: object
) -> None:
    """A token chooses `top_k` different experts in each layer."""
    if counts.shape != expected:
        raise RoutingFileError(
            f"{where}: counts: expected shape [{expected[0]}, {expected[1]}] (MoE layers, experts), "
            f"found {list(counts.shape)}"
        )
    _check_whole_numbers(counts, "counts", where, None)
    row_sum = num_tokens * top_k
    # Before sums are taken, which would wrap.
    if counts.size and counts.max() > num_tokens:
        layer, expert = np.argwhere(counts > num_tokens)[0].tolist()
        raise RoutingFileError(
            f"{where}: counts: expected no expert to be chosen by more than the {num_tokens} tokens, found "
            f"{counts[layer, expert]} for expert {expert} in row {layer}"
        )
    sums = counts.sum(axis=1, dtype=np.uint64)
    wrong = np.flatnonzero(sums != row_sum)
    if len(wrong):
        raise RoutingFileError(
            f"{where}: counts: expected every layer to sum to tokens x top_k = {row_sum}, "
            f"found {sums[wrong[0]]} in row {wrong[0]}"
        )
    if row_sum == 0:
        raise RoutingFileError(f"{where}: counts: expected at least one token, found none")


def _check_trace(stats: RoutingStats, where: object) -> None:
    trace = stats.trace
    if trace is None:
        return
    expected = (stats.num_tokens, len(stats.moe_layers), stats.top_k)
    if trace.shape != expected:
        raise RoutingFileError(
            f"{where}: trace: expected shape {list(expected)} (tokens, MoE layers, top_k), "
            f"found {list(trace.shape)}"
        )
    _check_whole_numbers(trace, "trace", where, stats.num_experts - 1)
    if not np.array_equal(count_experts(trace, stats.num_experts), stats.counts):
        raise RoutingFileError(f"{where}: trace: does not add up to counts; write the file again")
    _check_distinct(trace, where)


def _check_distinct(trace: NDArray[Any], where: object) -> None:
    """A router never gives a token the same expert twice, and the choice among holders counts on it."""
    for start in range(0, len(trace), _TOKENS_AT_ONCE):
        in_order = np.sort(trace[start : start + _TOKENS_AT_ONCE], axis=2)
        again = np.argwhere(in_order[:, :, 1:] == in_order[:, :, :-1])
        if len(again):
            token, layer, place = again[0].tolist()
            raise RoutingFileError(
                f"{where}: trace: expected a token's experts to differ, found expert "
                f"{in_order[token, layer, place]} twice in token {start + token}, MoE layer number {layer}"
            )
