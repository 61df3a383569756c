"""Dumps of SGLang's expert distribution recorder.

Formats as written by sgl-project/sglang, python/sglang/srt/eplb/expert_distribution.py. The layer axis covers
all layers of the trunk; dense ones are empty. "Physical" experts are slots: the model's own and, with
`--ep-num-redundant-experts`, copies.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from placement.errors import RoutingFileError
from placement.files.quote import one_line
from placement.given.stats import RoutingStats
from placement.interop.container import container_of
from placement.interop.json_records import number_array, read_json_records
from placement.interop.loads import check_slots, logical_loads, moe_rows, stats_from_ids, stats_from_loads
from placement.interop.torch_file import load_torch_file
from placement.model_shape import ModelShape

COUNTS, PLACEMENT, RECORDS = "logical_count", "physical_to_logical_map", "records"
_EXPECTED = "a dump of SGLang's recorder (docs/interop.md)"


def read_sglang_dump(path: str | os.PathLike[str], shape: ModelShape) -> RoutingStats:
    """Read what `/dump_expert_distribution_record` wrote: a `.pt` file, a folder of them, or JSON counts.

    Recorder modes `stat` and `stat_approx` give `logical_count` [passes, layers, experts]; `per_pass` gives
    records with `global_physical_count` [layers, slots]; `per_token` records with `topk_ids_of_layer`
    [layers, tokens, 8] too, which become a trace. A folder holds one file a rank; in plain tensor parallelism
    every rank sees the same tokens, so give one file then. The JSON form is what `--init-expert-location`
    takes: an object with `logical_count`.

    Raises:
        RoutingFileError: unreadable, another form, or another model.
    """
    source_path = Path(path)
    files = sorted(source_path.glob("*.pt")) if os.path.isdir(source_path) else [source_path]
    if not files:
        raise RoutingFileError(f"{path}: expected .pt files in this folder, found none")
    parts = [_read_file(file, shape) for file in files]
    merged = parts[0]
    for part in parts[1:]:
        merged = merged.merge(part)
    return merged


def _read_file(path: Path, shape: ModelShape) -> RoutingStats:
    source = f"SGLang, {path.name}"
    if container_of(path, _EXPECTED) == "json":
        where, content = next(read_json_records(path))
        if COUNTS not in content:
            if PLACEMENT in content:
                raise RoutingFileError(
                    f"{where}: this is a placement ({PLACEMENT}: which expert sits in which slot), not "
                    "statistics: it does not say how often experts are used; record counts with SGLang's "
                    "expert distribution recorder, or with `potluck stats` (docs/interop.md)"
                )
            raise RoutingFileError(f"{where}: expected {COUNTS}, found {_names(content)}")
        counts = number_array(content[COUNTS], f"{where}: {COUNTS}")
        return stats_from_loads(shape, logical_loads(counts, None, shape, where), source, where)
    content = load_torch_file(path)
    where = str(path)
    if isinstance(content, dict) and isinstance(content.get(COUNTS), np.ndarray):
        loads = logical_loads(content[COUNTS], None, shape, f"{where}: {COUNTS}")
        return stats_from_loads(shape, loads, source, where)
    if isinstance(content, dict) and isinstance(content.get(RECORDS), list):
        return _from_records(content, shape, source, where)
    keys = _names(content) if isinstance(content, dict) else type(content).__name__
    raise RoutingFileError(
        f"{where}: expected a dump of SGLang's recorder ({COUNTS} or {RECORDS}), found {keys}"
    )


def _from_records(content: dict[Any, Any], shape: ModelShape, source: str, where: str) -> RoutingStats:
    records = content[RECORDS]
    if not records or not all(isinstance(record, dict) for record in records):
        raise RoutingFileError(
            f"{where}: {RECORDS}: expected one a forward pass, found none; was it recording?"
        )
    slot_map = content.get("last_physical_to_logical_map")
    if not isinstance(slot_map, np.ndarray):
        raise RoutingFileError(f"{where}: expected last_physical_to_logical_map beside the records")
    if "topk_ids_of_layer" in records[0]:
        slots = check_slots(slot_map, shape, where)
        ids = [
            _ids_of_pass(record, slots, shape, f"{where}: record {index}")
            for index, record in enumerate(records)
        ]
        return stats_from_ids(shape, np.concatenate(ids), source, where)
    counts = [
        _array(record, "global_physical_count", f"{where}: record {i}") for i, record in enumerate(records)
    ]
    if len({count.shape for count in counts}) > 1:
        raise RoutingFileError(f"{where}: global_physical_count: expected one shape in all records")
    loads = logical_loads(np.stack(counts), slot_map, shape, where)
    return stats_from_loads(shape, loads, source, where)


def _ids_of_pass(
    record: dict[Any, Any], slots: NDArray[np.int64], shape: ModelShape, where: str
) -> NDArray[np.int32]:
    """Experts of one forward pass, int32 [tokens, num_moe_layers, top_k]; -1 where nothing was chosen."""
    ids = _array(record, "topk_ids_of_layer", where)
    if ids.ndim != 3 or ids.dtype.kind not in "iu" or ids.shape[2] < shape.top_k:
        raise RoutingFileError(
            f"{where}: topk_ids_of_layer: expected whole numbers [layers, tokens, {shape.top_k} or more], "
            f"found {ids.dtype} {list(ids.shape)}"
        )
    ids = moe_rows(ids, 0, shape, where)
    # The recorder keeps eight columns; those past the model's top_k stay -1.
    if (ids[:, :, shape.top_k :] != -1).any():
        raise RoutingFileError(
            f"{where}: topk_ids_of_layer: expected {shape.top_k} experts a token, found more"
        )
    ids = ids[:, :, : shape.top_k]
    if ids.size and (ids.min() < -1 or ids.max() >= slots.shape[1]):
        raise RoutingFileError(f"{where}: topk_ids_of_layer: expected slots up to {slots.shape[1] - 1}")
    experts = np.take_along_axis(
        slots.astype(np.int32), np.maximum(ids, 0).reshape(len(slots), -1), axis=1
    ).reshape(ids.shape)
    return np.where(ids >= 0, experts, np.int32(-1)).transpose(1, 0, 2)


def _array(record: dict[Any, Any], name: str, where: str) -> NDArray[Any]:
    value = record.get(name)
    if not isinstance(value, np.ndarray):
        raise RoutingFileError(f"{where}: expected a tensor {name}")
    return value


def _names(keys: Iterable[object]) -> str:
    return one_line(", ".join(map(str, keys))) or "nothing"
