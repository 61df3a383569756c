"""The small tables of quantised types, which the gguf library has, handed to the compiled kernels."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from gguf import quants
from numpy.typing import NDArray

from workers.kernels import native
from workers.kernels.native import TablesArgs


@cache
def load_tables() -> tuple[NDArray[np.generic], ...]:
    """Once a process: the kernels point into the arrays, which the cache keeps."""
    arrays = (
        np.array(quants.IQ4_NL.kvalues, np.int8),
        np.array(quants.MXFP4.kvalues, np.int8),
        *(
            _grid(kind)
            for kind in (quants.IQ2_XXS, quants.IQ2_XS, quants.IQ2_S, quants.IQ3_XXS, quants.IQ3_S)
        ),
        np.frombuffer(quants.IQ2_XXS.ksigns, np.uint8),
    )
    native.set_tables(TablesArgs(*(array.ctypes.data for array in arrays)))
    return arrays


def _grid(kind: Any) -> NDArray[np.uint8]:
    """Rows of magnitudes: uint8 [rows, 4 or 8]."""
    kind.init_grid()
    return np.ascontiguousarray(kind.grid, np.uint8).reshape(kind.grid_shape)
