"""Writes a routing file whose trace comes piece by piece, in the memory of a piece."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from placement.errors import InputError
from placement.files.atomic import replacing
from placement.files.zip_archive import MOST_BYTES
from placement.given.stats import RoutingStats, count_experts
from placement.model_shape import ModelShape

# For all arrays but the trace.
_OTHER_BYTES = 2**24


def check_num_tokens(num_tokens: int, shape: ModelShape) -> None:
    """Raise InputError for a trace that could not be read again, or an empty one."""
    most = (MOST_BYTES - _OTHER_BYTES) // (2 * shape.num_moe_layers * shape.top_k)
    if not 0 < num_tokens <= most:
        raise InputError(
            f"a trace of {num_tokens:,} tokens: expected 1 to {most:,} of {shape.name}, which a routing file "
            "can hold"
        )


def write_trace(
    path: str | os.PathLike[str],
    shape: ModelShape,
    pieces: Iterable[NDArray[np.uint16]],
    num_tokens: int,
    source: str,
) -> None:
    """Write the `.npz` described in docs/formats.md.

    Args:
        pieces: uint16 [tokens, num_moe_layers, top_k] each, `num_tokens` together.

    Raises:
        InputError: more tokens than a routing file may hold, or a path that cannot be written.
    """
    check_num_tokens(num_tokens, shape)
    counts = np.zeros((shape.num_moe_layers, shape.num_experts), dtype=np.uint64)
    header = {
        "descr": "<u2",
        "fortran_order": False,
        "shape": (num_tokens, shape.num_moe_layers, shape.top_k),
    }
    with replacing(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        # Its size is not known to zipfile before it is written.
        with archive.open("trace.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array_header_1_0(member, header)
            for piece in pieces:
                counts += count_experts(piece, shape.num_experts)
                member.write(np.ascontiguousarray(piece, dtype="<u2").data)
        stats = RoutingStats.from_counts(shape, counts, num_tokens, source)
        for name, array in stats.arrays().items():
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
