"""Read routing statistics of any known kind."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from placement.errors import RoutingFileError
from placement.input_file import opened
from placement.interop import gguf
from placement.interop.count_tables import read_counts
from placement.interop.imatrix import read_imatrix
from placement.interop.json_records import read_json_records
from placement.interop.responses import read_responses
from placement.interop.sglang_dump import read_sglang_dump
from placement.interop.torch_file import load_torch_file
from placement.interop.vllm_loads import LOADS, read_vllm_loads
from placement.model_shape import ModelShape
from placement.stats import RoutingStats
from placement.zip_archive import opened_zip

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
    file_path = Path(path)
    if os.path.isdir(file_path):
        return "sglang-dump"
    with opened(path, RoutingFileError, _EXPECTED) as file:
        start = file.read(8)
    if start.startswith(gguf.MAGIC):
        return "imatrix"
    if start.startswith(b"\x93NUMPY"):
        return "vllm-loads"
    if start.startswith(b"PK"):
        return _kind_of_archive(file_path)
    if start.lstrip()[:1] in (b"{", b"["):
        return _kind_of_json(file_path)
    raise RoutingFileError(f"{path}: of no known kind; expected {_EXPECTED}")


def _kind_of_archive(path: Path) -> str:
    """`.npz` and `.pt` are both zip archives; only the second holds a pickle."""
    with opened_zip(path, RoutingFileError, _EXPECTED) as archive:
        names = archive.namelist()
    if any(name.endswith("data.pkl") for name in names):
        content = load_torch_file(path)
        known = isinstance(content, dict) and ("logical_count" in content or "records" in content)
        return "sglang-dump" if known else "vllm-loads"
    if {"format.npy", "fingerprint.npy"} <= set(names):
        return "potluck"
    return "vllm-loads" if any(f"{name}.npy" in names for name in LOADS) else "count-tables"


def _kind_of_json(path: Path) -> str:
    for number, (_, record) in enumerate(read_json_records(path)):
        if number == 0 and ("logical_count" in record or "physical_to_logical_map" in record):
            return "sglang-dump"
        if "record_type" in record:
            return "vllm-loads"
    return "responses"
