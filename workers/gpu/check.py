"""What a host's rows must be before a card sees them: as `workers.kernels.moe_partial_sum` refuses them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from transport.expert_rows import ExpertRows
from transport.rounded_hidden import RoundedHidden
from workers.gpu.workspace import WorkShape
from workers.partial_sum import ExpertNotHeld

_MOST_EXPONENT = 512


def check_rows(shape: WorkShape, layer: int, rows: ExpertRows, here: NDArray[np.bool_]) -> None:
    """See that a card can compute these rows.

    Args:
        here: bool [E], the experts that it has.

    Raises:
        ExpertNotHeld: an id that is not here.
        ValueError: shapes that do not fit, an id or exponent out of range, a rounded value of -128.
    """
    hidden, ids, weights, exponents = rows
    num_rows, top_k = ids.shape
    if (
        hidden.shape != (num_rows, shape.hidden)
        or weights.shape != ids.shape
        or exponents.shape != (num_rows,)
        or top_k > shape.top_k
    ):
        raise ValueError(
            f"rows of layer {layer}: shapes do not fit: hidden {hidden.shape}, ids {ids.shape}, weights "
            f"{weights.shape}, exponents {exponents.shape}"
        )
    if not num_rows:
        return
    if ids.min() < -1 or ids.max() >= len(here):
        raise ValueError(f"rows of layer {layer}: an expert id is outside -1 to {len(here) - 1}")
    missing = (ids >= 0) & ~here[ids]
    if missing.any():
        raise ExpertNotHeld(
            f"layer {layer}: expert {ids[missing][0]} is not held here: the sender's plan differs from this "
            "tier's"
        )
    # Not by np.abs, which gives the least int32 as it is.
    if exponents.min() < -_MOST_EXPONENT or exponents.max() > _MOST_EXPONENT:
        raise ValueError(f"rows of layer {layer}: a scale exponent is outside -512 to 512")
    if isinstance(hidden, RoundedHidden) and any((part.q == -128).any() for part in hidden.parts):
        raise ValueError(f"rows of layer {layer}: a rounded value is below -127")
