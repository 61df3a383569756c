"""Read routing statistics of any known kind."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from placement.errors import RoutingFileError
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
    return READERS[kind](path, shape)


def detect(path: str | os.PathLike[str]) -> str:
    """The kind of a file, by what is in it.

    Raises:
        RoutingFileError: missing, or of no known kind.
    """
    file_path = Path(path)
    if file_path.is_dir():
        return "sglang-dump"
    try:
        with open(file_path, "rb") as file:
            start = file.read(8)
    except OSError as error:
        raise RoutingFileError(f"{path}: {error.strerror}") from error
    if start.startswith(gguf.MAGIC):
        return "imatrix"
    if start.startswith(b"\x93NUMPY"):
        return "vllm-loads"
    if start.startswith(b"PK"):
        return _kind_of_archive(file_path)
    if start.lstrip()[:1] in (b"{", b"["):
        return _kind_of_json(file_path)
    raise RoutingFileError(f"{path}: of no known kind; expected a file as in docs/interop.md")


def _kind_of_archive(path: Path) -> str:
    """`.npz` and `.pt` are both zip archives; only the second holds a pickle."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile as error:
        raise RoutingFileError(f"{path}: damaged archive: {error}") from error
    if any(name.endswith("data.pkl") for name in names):
        content = load_torch_file(path)
        known = isinstance(content, dict) and ("logical_count" in content or "records" in content)
        return "sglang-dump" if known else "vllm-loads"
    if {"format.npy", "fingerprint.npy"} <= set(names):
        return "potluck"
    return "vllm-loads" if any(f"{name}.npy" in names for name in LOADS) else "count-tables"


def _kind_of_json(path: Path) -> str:
    records = read_json_records(path)
    if "logical_count" in records[0][1]:
        return "sglang-dump"
    if any("record_type" in record for _, record in records):
        return "vllm-loads"
    return "responses"
