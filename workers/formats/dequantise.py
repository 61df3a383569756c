"""Stored weights as float32, exactly: no form holds a number that float32 does not.

Blocks of GGML's types are taken apart by the gguf library.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from placement.weight_format import WeightFormat
from workers.formats.checkpoint import StoredMatrix
from workers.formats.gguf.types import NUMBERS
from workers.kernels.matrix import TORCH_DTYPES


def float32_rows(matrix: StoredMatrix, rows: Tensor) -> Tensor:
    """Some rows of a matrix, such as a text's of the embedding; the others are not read.

    Args:
        rows: int64 [n].

    Returns:
        float32 [n, columns].
    """
    taken = matrix.data.index_select(0, rows)
    if matrix.form in TORCH_DTYPES:
        return taken.float()
    if matrix.scales is None:
        return float32_values(taken.view(-1), matrix.form).view(len(rows), matrix.columns)
    tile = matrix.form.scale_tile
    scales = matrix.scales[rows // tile].repeat_interleave(tile, dim=1)[:, : matrix.columns]
    return taken.view(torch.float8_e4m3fn).float() * scales


def float32_matrix(matrix: StoredMatrix) -> Tensor:
    """All of a matrix: float32 [rows, columns]."""
    return float32_rows(matrix, torch.arange(matrix.rows))


def float32_values(stored: Tensor, form: WeightFormat) -> Tensor:
    """Stored blocks as float32.

    Args:
        stored: uint8 [n], contiguous: whole blocks of `form`.

    Returns:
        [weights], in the order stored; a view where the form is float32. Broken scales give NaN.
    """
    if form in TORCH_DTYPES:
        return stored.view(TORCH_DTYPES[form]).float()
    # The library takes a while to load, and commands that read no weights do without.
    import gguf

    kind = gguf.GGMLQuantizationType(NUMBERS[form])
    with np.errstate(all="ignore"):
        return torch.from_numpy(gguf.quants.dequantize(stored.view(-1, form.block_bytes).numpy(), kind)).view(
            -1
        )
