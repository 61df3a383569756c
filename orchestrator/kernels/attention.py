"""Attention over a sequence's cache."""

from __future__ import annotations

from torch import Tensor, empty

from workers.kernels import native
from workers.kernels.native import check, is_bf16, mismatch, num_threads, raise_if_failed


def attention(
    q: Tensor,
    k_new: Tensor,
    v_new: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    position: int,
    window: int,
    scale: float,
) -> Tensor:
    """Causal softmax attention of one sequence's new rows, over its cache and the rows themselves.

    Row t sits at position + t and sees the keys at positions up to its own, the last `window` of them
    (its own included) when window > 0. Keys before `position` come from slot (their position mod R) of
    the cache, the others from k_new and v_new. Each query head is summed over keys in ascending
    position, so where a key was read from does not change the result.

    Args:
        q: [T, Hq, D] float32.
        k_new, v_new: [T, Hkv, D], float32 or bfloat16 like the caches; Hq is a multiple of Hkv.
        k_cache, v_cache: [R, Hkv, D].

    Returns:
        [T, Hq, D] float32.
    """
    T, num_heads, D = q.shape
    slots, num_kv_heads, _ = k_cache.shape
    if (
        k_new.shape != (T, num_kv_heads, D)
        or v_new.shape != k_new.shape
        or v_cache.shape != k_cache.shape
        or k_cache.shape[2] != D
        or num_heads % num_kv_heads
    ):
        raise mismatch("attention", q=q, k_new=k_new, v_new=v_new, k_cache=k_cache, v_cache=v_cache)
    cached = min(position, window - 1) if window else position
    if cached > slots:
        raise ValueError(f"attention: {cached} earlier keys are needed, the cache has {slots} slots")
    out = empty(T, num_heads, D)
    status = native.attention(
        check(q).data_ptr(),
        k_new.data_ptr(),
        v_new.data_ptr(),
        k_cache.data_ptr(),
        v_cache.data_ptr(),
        is_bf16(k_new, v_new, k_cache, v_cache),
        out.data_ptr(),
        T,
        num_heads,
        num_kv_heads,
        D,
        slots,
        position,
        window,
        scale,
        num_threads(),
    )
    raise_if_failed(status)
    return out
