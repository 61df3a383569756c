"""Held-out text that a policy is run on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Where nobody says how long documents are: those of the synthetic generator.
DOCUMENT_TOKENS = 256


@dataclass(frozen=True, slots=True, eq=False)
class Text:
    """`trace`: int [num_tokens, num_moe_layers, top_k], in the order of the workload's passes.

    `document_tokens`: tokens of a document; only policies that look at prompts care.
    """

    trace: NDArray[np.integer]
    document_tokens: int = DOCUMENT_TOKENS
