"""Attention over a sequence's pages of keys and values, and how new rows get into them.

docs/attention.md has a page's layout and the order of the sums.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, empty

from placement.kv_size import PAGE_POSITIONS, KvForm, KvShape
from workers.kernels import native
from workers.kernels.native import address, check, mismatch, num_threads, raise_if_failed

PageTable = NDArray[np.int64]
_INT64 = np.dtype(np.int64)


_INDEX = {KvForm.float32: 0, KvForm.bfloat16: 1, KvForm.int8: 2}


def kv_rows(
    qkv: Tensor,
    qk_norm: Tensor,
    eps: float,
    cos: Tensor,
    sin: Tensor,
    rotary_half: int,
    pages: PageTable,
    kv: KvShape,
    position: int,
) -> Tensor:
    """Norm and rotate projected queries and keys; write keys and values, rounded, at `position` and on.

    A head's row x becomes x / sqrt(mean(x^2) + eps) times its qk_norm. Then its pairs (d, d + rotary_half),
    d < rotary_half, are rotated: x_d * cos_d + x_partner * sin_d.

    Args:
        qkv: [T, at least (Hq + 2 Hkv) * D] float32, rows of query, key and value heads; a row's numbers lie
            side by side.
        qk_norm: [Hq + Hkv, D] float32.
        cos, sin: [T, 1, D] float32; the first of a pair has its sine negated.
        pages: addresses; entry i is the page of positions from i * PAGE_POSITIONS on.

    Returns:
        The queries, [T, Hq, D] float32.
    """
    T, width = qkv.shape
    num_heads, D = qk_norm.shape[0] - kv.num_kv_heads, kv.head_dim
    if (
        qk_norm.shape[1] != D
        or width < (num_heads + 2 * kv.num_kv_heads) * D
        or cos.shape != (T, 1, D)
        or sin.shape != cos.shape
        or not 0 <= 2 * rotary_half <= D
    ):
        raise mismatch("kv_rows", qkv=qkv, qk_norm=qk_norm, cos=cos, sin=sin)
    _check_pages(pages, position, position + T)
    queries = empty(T, num_heads, D)
    native.kv_rows(
        _rows(qkv),
        qkv.stride(0),
        check(qk_norm).data_ptr(),
        eps,
        check(cos).data_ptr(),
        check(sin).data_ptr(),
        rotary_half,
        queries.data_ptr(),
        address(pages, _INT64),
        _INDEX[kv.form],
        T,
        num_heads,
        kv.num_kv_heads,
        D,
        position,
        num_threads(),
    )
    return queries


def attention(
    queries: Tensor,
    pages: PageTable,
    kv: KvShape,
    position: int,
    window: int,
    scale: float,
    gate: Tensor | None = None,
) -> Tensor:
    """Causal softmax attention of one sequence's rows over its pages, which hold the rows' own keys too.

    Row t sits at position + t and sees the keys at positions up to its own, the last `window` of them (its
    own included) when window > 0.

    Args:
        queries: [T, Hq, D] float32; Hq is a multiple of the KV heads.
        pages: as in `kv_rows`.
        gate: [T, Hq] float32 logits; a head's output is multiplied by their sigmoid. A row's numbers lie
            side by side.

    Returns:
        [T, Hq, D] float32.
    """
    T, num_heads, D = queries.shape
    if kv.head_dim != D or num_heads % kv.num_kv_heads or (gate is not None and gate.shape != (T, num_heads)):
        raise mismatch("attention", queries=queries, **({} if gate is None else {"gate": gate}))
    _check_pages(pages, max(0, position + 1 - window) if window else 0, position + T)
    out = empty(T, num_heads, D)
    status = native.attention(
        check(queries).data_ptr(),
        None if gate is None else _rows(gate),
        0 if gate is None else gate.stride(0),
        address(pages, _INT64),
        _INDEX[kv.form],
        out.data_ptr(),
        T,
        num_heads,
        kv.num_kv_heads,
        D,
        position,
        window,
        scale,
        num_threads(),
    )
    raise_if_failed(status)
    return out


def _rows(x: Tensor) -> int:
    """Address of a float32 matrix whose rows may lie apart."""
    if x.stride(1) != 1:
        check(x)
    return check(x[0]).data_ptr()


def _check_pages(pages: PageTable, start: int, stop: int) -> None:
    """Raise ValueError unless the first and last page of positions start .. stop-1 are there."""
    first, last = start // PAGE_POSITIONS, (stop - 1) // PAGE_POSITIONS
    if last >= len(pages) or not pages[first] or not pages[last]:
        raise ValueError(
            f"attention: positions {start} to {stop - 1} are needed, but their pages are not all held"
        )
