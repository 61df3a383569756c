"""Where arrays may begin that lie side by side in a card's memory, or in what is sent there."""

from __future__ import annotations

ALIGNMENT = 256
"""Bytes. Kernels read matrices sixteen at a time, and a card's memory gives them in sectors of 32."""


def aligned(num_bytes: int) -> int:
    """Up to where the next array may begin."""
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT
