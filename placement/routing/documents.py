"""Documents as the unit of independent routing: tokens of one text choose alike, tokens of two do not.

Routing varies from document to document by more than the chance of drawing tokens: around its domain's
mean like a Dirichlet distribution whose concentration c was measured at about 130 for general text, 200
for maths and 680 for code (OLMoE-1B-7B, 100 documents each; see docs/interop.md). A document of m choices
then says as much as m / (1 + (m - 1) / (c + 1)) independent ones: never more than c + 1, however long it is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from placement.errors import InputError

# The most varied of the three measured domains: with it, confidence errs on the low side.
GENERAL_TEXT_CONCENTRATION = 130.0


def even_lengths(num_tokens: int, block_tokens: int) -> list[int]:
    """Lengths of consecutive blocks of `block_tokens`; a shorter rest joins the last block."""
    if block_tokens < 1:
        raise InputError(f"block_tokens: expected at least 1, found {block_tokens}")
    num_blocks = max(1, num_tokens // block_tokens)
    return [block_tokens] * (num_blocks - 1) + [num_tokens - block_tokens * (num_blocks - 1)]


def count_documents(
    trace: NDArray[np.integer], lengths: Sequence[int], num_experts: int
) -> NDArray[np.uint32]:
    """Choices of each expert in each document.

    Args:
        trace: int [num_tokens, num_layers, top_k], documents one after another.
        lengths: tokens of each document; they add up to num_tokens.

    Returns:
        uint32 [num_documents, num_layers, num_experts].

    Raises:
        InputError: lengths that do not add up.
    """
    num_tokens, num_layers, top_k = trace.shape
    if sum(lengths) != num_tokens or min(lengths, default=0) < 1:
        raise InputError(
            f"document lengths: expected positive ones adding up to {num_tokens} tokens, found {sum(lengths)}"
        )
    document = np.repeat(np.arange(len(lengths)), np.asarray(lengths) * top_k)
    counts = np.empty((len(lengths), num_layers, num_experts), dtype=np.uint32)
    for layer in range(num_layers):
        cells = document * num_experts + trace[:, layer].ravel()
        counts[:, layer] = np.bincount(cells, minlength=len(lengths) * num_experts).reshape(-1, num_experts)
    return counts


def fit_concentration(documents: NDArray[np.integer]) -> float:
    """How tightly documents sit around their common mean, as a Dirichlet concentration.

    Method of moments over all layers: in a Dirichlet-multinomial the chance that two choices of one
    document name the same expert exceeds that of two choices of different documents by
    (1 - sum p^2) / (c + 1). Infinite when documents differ by no more than chance.

    Args:
        documents: int [num_documents, num_layers, num_experts], at least two documents with at least two
            choices in every layer.
    """
    counts = documents.astype(np.float64)
    if len(counts) < 2 or counts.sum(axis=2).min(initial=np.inf) < 2:
        raise InputError("documents: expected at least two, each with two choices in every layer")
    choices = counts.sum(axis=2)
    same = ((counts * (counts - 1)).sum(axis=2) / (choices * (choices - 1))).mean(axis=0)
    shares = counts / choices[:, :, None]
    total = shares.sum(axis=0)
    num_pairs = len(counts) * (len(counts) - 1)
    across = ((total * total).sum(axis=1) - (shares * shares).sum(axis=(0, 2))) / num_pairs
    excess, room = (same - across).sum(), (1 - across).sum()
    return float(room / excess - 1) if excess > 0 else float("inf")


def design_effect(choices_per_document: float, concentration: float) -> float:
    """Choices that carry as much as one independent choice does: 1 + (m - 1) / (c + 1).

    Kish's design effect with the intraclass correlation 1 / (c + 1) of a Dirichlet-multinomial.
    """
    return 1.0 + max(0.0, choices_per_document - 1.0) / (concentration + 1.0)
