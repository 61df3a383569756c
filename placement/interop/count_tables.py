"""Tables of expert counts as research code publishes them: numpy files, one table a document or subject."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from placement.errors import RoutingFileError
from placement.files.numpy_file import read_numpy_file
from placement.files.quote import quote
from placement.given.stats import RoutingStats
from placement.interop.loads import moe_rows, stats_from_loads
from placement.model_shape import ModelShape

_COUNTS = "counts"
# Published ones take less than a megabyte; in memory each number takes eight bytes.
_MOST_BYTES = 2**28


def read_count_tables(
    path: str | os.PathLike[str], shape: ModelShape, only: Collection[str] | None = None
) -> NDArray[np.int64]:
    """Counts by document, as `drift.drift_test` and `documents.fit_concentration` take them.

    Args:
        path: `.npz` with `counts` [documents, layers, experts] (OLMoE tables), or with an array [layers,
            experts] a subject (Fiddler's popularity tables), or a `.npy` with either.
        only: names of the subjects to read; all without it.

    Returns:
        int64 [num_documents, num_moe_layers, num_experts].

    Raises:
        RoutingFileError: unreadable, an unknown subject, or another model.
    """
    content = read_numpy_file(
        path, RoutingFileError, "tables of counts (docs/interop.md)", most_bytes=_MOST_BYTES
    )
    tables: Mapping[str, NDArray[Any]]
    tables = {_COUNTS: content} if isinstance(content, np.ndarray) else content
    if _COUNTS in tables:
        tables = {_COUNTS: tables[_COUNTS]}
    unknown = sorted(set(only or ()) - set(tables))
    if unknown:
        raise RoutingFileError(
            f"{path}: expected one of {quote(list(tables))}, found no {', '.join(unknown)}"
        )
    chosen = [
        _documents(table, shape, f"{path}: {name}")
        for name, table in tables.items()
        if only is None or name in only
    ]
    if not chosen:
        raise RoutingFileError(f"{path}: expected at least one table of counts, found none")
    return np.concatenate(chosen)


def read_counts(
    path: str | os.PathLike[str], shape: ModelShape, only: Collection[str] | None = None
) -> RoutingStats:
    """All documents of `read_count_tables` together.

    Raises:
        RoutingFileError: as there, or tables that do not add up.
    """
    total = read_count_tables(path, shape, only).sum(axis=0).astype(np.float64)
    names = f" ({', '.join(sorted(only))})" if only else ""
    return stats_from_loads(shape, total, f"{Path(path).name}{names}", str(path))


def _documents(table: NDArray[Any], shape: ModelShape, where: str) -> NDArray[np.int64]:
    if table.ndim not in (2, 3) or table.dtype.kind not in "iu" or table.shape[-1] != shape.num_experts:
        raise RoutingFileError(
            f"{where}: expected whole numbers [documents, layers, {shape.num_experts}] or "
            f"[layers, {shape.num_experts}], found {table.dtype} {list(table.shape)}"
        )
    documents = table if table.ndim == 3 else table[None]
    if documents.size and documents.min() < 0:
        raise RoutingFileError(f"{where}: expected no negative counts, found {documents.min()}")
    return moe_rows(documents, 1, shape, where).astype(np.int64)
