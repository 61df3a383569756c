"""Expert loads of vLLM's load balancer (EPLB).

Arrays as vllm-project/vllm keeps them in vllm/distributed/eplb/eplb_state.py: `expert_load_pass` [layers,
slots] and `expert_load_window` [steps, layers, slots], tokens by physical expert, and
`physical_to_logical_map` [layers, slots]; layers are the MoE layers. Lines as in its pull request 41141
(`expert_load_stats_path`): JSON objects with record_type `eplb_load_stats`, `expert_load` and `p2l_map`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from placement.errors import RoutingFileError
from placement.files.numpy_file import read_numpy_file
from placement.files.quote import one_line
from placement.given.stats import RoutingStats
from placement.interop.container import Container, container_of
from placement.interop.json_records import number_array, read_json_records
from placement.interop.loads import logical_loads, stats_from_loads
from placement.interop.torch_file import load_torch_file
from placement.model_shape import ModelShape

LOADS = ("expert_load_window", "global_expert_load_window", "expert_load_pass", "expert_load")
_SLOT_MAPS = ("physical_to_logical_map", "p2l_map")
_EXPECTED = "loads of vLLM's load balancer (docs/interop.md)"
_RECORD_TYPE = "eplb_load_stats"


def read_vllm_loads(path: str | os.PathLike[str], shape: ModelShape) -> RoutingStats:
    """Read loads saved as JSON lines, by torch or by numpy, whatever the file is called.

    A torch or `.npz` file holds the arrays under vLLM's names; a lone array is taken as loads of experts, or
    of slots if there is no more than one slot an expert. Steps are added up.

    Raises:
        RoutingFileError: unreadable, no loads in it, or another model.
    """
    source = f"vLLM EPLB, {Path(path).name}"
    container = container_of(path, _EXPECTED)
    if container == "json":
        return stats_from_loads(shape, _from_lines(path, shape), source, str(path))
    arrays = _named_arrays(path, container)
    name = next((name for name in LOADS if name in arrays), None)
    if name is None:
        raise RoutingFileError(
            f"{path}: expected an array {' or '.join(LOADS)}, found {one_line(', '.join(arrays)) or 'none'}"
        )
    slot_map = next((arrays[key] for key in _SLOT_MAPS if key in arrays), None)
    loads = logical_loads(arrays[name], slot_map, shape, f"{path}: {name}")
    return stats_from_loads(shape, loads, source, str(path))


def _from_lines(path: str | os.PathLike[str], shape: ModelShape) -> NDArray[np.float64]:
    total = np.zeros((shape.num_moe_layers, shape.num_experts))
    seen = False
    for where, record in read_json_records(path):
        if record.get("record_type") != _RECORD_TYPE:
            continue
        seen = True
        loads, slot_map = (
            number_array(record.get(name), f"{where}: {name}") for name in ("expert_load", "p2l_map")
        )
        total += logical_loads(loads, slot_map, shape, where)
    if not seen:
        raise RoutingFileError(f"{path}: expected records of type {_RECORD_TYPE}, found none")
    return total


def _named_arrays(path: str | os.PathLike[str], container: Container | None) -> dict[str, NDArray[Any]]:
    if container == "torch":
        content = load_torch_file(path)
    else:
        content = read_numpy_file(path, RoutingFileError, _EXPECTED)
    if isinstance(content, np.ndarray):
        return {LOADS[-1]: content}
    if not isinstance(content, dict):
        raise RoutingFileError(f"{path}: expected arrays by name, found {type(content).__name__}")
    return {str(name): value for name, value in content.items() if isinstance(value, np.ndarray)}
