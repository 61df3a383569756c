"""Read routing statistics of any known kind."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from types import MappingProxyType

from placement.errors import RoutingFileError
from placement.files.numpy_file import array_names
from placement.given.stats import RoutingStats
from placement.interop.container import container_of
from placement.interop.count_tables import read_counts
from placement.interop.imatrix import read_imatrix
from placement.interop.json_records import read_json_records
from placement.interop.responses import read_responses
from placement.interop.sglang_dump import COUNTS, PLACEMENT, RECORDS, read_sglang_dump
from placement.interop.torch_file import load_torch_file
from placement.interop.vllm_loads import LOADS, read_vllm_loads
from placement.model_shape import ModelShape

_EXPECTED = "routing statistics (docs/interop.md)"

Reader = Callable[[str | os.PathLike[str], ModelShape], RoutingStats]

READERS: Mapping[str, Reader] = MappingProxyType(
    {
        "potluck": RoutingStats.load,
        "sglang-dump": read_sglang_dump,
        "vllm-loads": read_vllm_loads,
        "responses": read_responses,
        "imatrix": read_imatrix,
        "count-tables": read_counts,
    }
)


def read_routing(path: str | os.PathLike[str], shape: ModelShape, kind: str | None = None) -> RoutingStats:
    """Routing statistics of a file, whoever wrote it.

    Args:
        kind: a key of READERS; told from the contents without it.

    Raises:
        RoutingFileError: an unknown kind, a file of no known kind, or what the kind's reader says.
    """
    kind = kind or detect(path)
    if kind not in READERS:
        raise RoutingFileError(f"kind {kind!r}: expected {', '.join(READERS)}")
    try:
        return READERS[kind](path, shape)
    except MemoryError:
        raise RoutingFileError(f"{path}: too large for this machine's memory; give less of it") from None


def detect(path: str | os.PathLike[str]) -> str:
    """The kind of a file, by what is in it.

    Raises:
        RoutingFileError: missing, or of no known kind.
    """
    # Unlike Path.is_dir, False for names that no folder can have.
    if os.path.isdir(path):
        return "sglang-dump"
    match container_of(path, _EXPECTED):
        case "gguf":
            return "imatrix"
        case "npy":
            return "vllm-loads"
        case "npz":
            return _kind_of_arrays(path)
        case "torch":
            content = load_torch_file(path)
            is_dump = isinstance(content, dict) and not {COUNTS, RECORDS}.isdisjoint(content)
            return "sglang-dump" if is_dump else "vllm-loads"
        case "json":
            return _kind_of_json(path)
    raise RoutingFileError(f"{path}: of no known kind; expected {_EXPECTED}")


def _kind_of_arrays(path: str | os.PathLike[str]) -> str:
    names = set(array_names(path, RoutingFileError, _EXPECTED))
    if {"format", "fingerprint"} <= names:
        return "potluck"
    return "count-tables" if names.isdisjoint(LOADS) else "vllm-loads"


def _kind_of_json(path: str | os.PathLike[str]) -> str:
    for number, (_, record) in enumerate(read_json_records(path)):
        if number == 0 and (COUNTS in record or PLACEMENT in record):
            return "sglang-dump"
        if "record_type" in record:
            return "vllm-loads"
    return "responses"
