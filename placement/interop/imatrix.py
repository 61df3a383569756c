"""llama.cpp's importance matrix: how many tokens each expert saw.

`llama-imatrix` (ggml-org/llama.cpp, tools/imatrix/imatrix.cpp) writes GGUF with `<name>.in_sum2` and
`<name>.counts` for each weight tensor of the model; for those of layer N's experts,
`blk.N.ffn_{gate,up,down}_exps.weight`, one count an expert. Counts are float32: exact to 16.7 million tokens
an expert.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from placement.errors import RoutingFileError
from placement.files.gguf_file import GgufFile, GgufTexts
from placement.files.quote import quote
from placement.given.stats import RoutingStats
from placement.interop.loads import stats_from_loads
from placement.model_shape import ModelShape

_EXPERT_TENSORS = ("ffn_gate_up_exps", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")


def read_imatrix(path: str | os.PathLike[str], shape: ModelShape) -> RoutingStats:
    """Read the counts of an importance matrix in GGUF form.

    Raises:
        RoutingFileError: unreadable, the older `.dat` form, or another model.
    """
    gguf = GgufFile.open(path, RoutingFileError)
    kind = gguf.metadata.get("general.type")
    if kind != "imatrix":
        raise RoutingFileError(
            f"{path}: expected an importance matrix, found a GGUF of type {quote(kind or 'unknown')}"
        )
    loads = np.stack([_counts_of_layer(gguf, layer, shape) for layer in shape.moe_layers])
    datasets = gguf.metadata.get("imatrix.datasets")
    texts = ", ".join(datasets) if isinstance(datasets, GgufTexts) and len(datasets) else "unknown text"
    return stats_from_loads(shape, loads, f"llama-imatrix, {Path(path).name} on {texts}", str(path))


def _counts_of_layer(gguf: GgufFile, layer: int, shape: ModelShape) -> NDArray[np.float64]:
    found = {
        name: gguf.float32(f"{name}.counts", "counts of experts").reshape(-1).astype(np.float64)
        for name in (f"blk.{layer}.{tensor}.weight" for tensor in _EXPERT_TENSORS)
        if f"{name}.counts" in gguf.tensors
    }
    if not found:
        raise RoutingFileError(
            f"{gguf.path}: expected an importance matrix of {shape.name}, found no counts for the experts of "
            f"layer {layer} (blk.{layer}.ffn_gate_exps.weight.counts)"
        )
    first, counts = next(iter(found.items()))
    if len(counts) == 1 and shape.num_experts > 1:
        raise RoutingFileError(
            f"{gguf.path}: {first}: one count for all experts, as after conversion from the older .dat form; "
            "make the matrix with a llama-imatrix that writes GGUF"
        )
    if len(counts) != shape.num_experts or not np.isfinite(counts).all() or counts.min() < 0:
        raise RoutingFileError(
            f"{gguf.path}: {first}: expected counts of {shape.num_experts} experts, found {len(counts)}"
        )
    for name, others in found.items():
        if not np.array_equal(others, counts):
            raise RoutingFileError(
                f"{gguf.path}: {first} and {name} saw different tokens: expected equal counts; "
                "was it merged from matrices of different models?"
            )
    return counts
