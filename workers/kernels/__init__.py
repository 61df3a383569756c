"""Row-invariant CPU kernels: a row's bits depend on that row and the weights alone.

They do not depend on the other rows of the call, the number of threads, the instruction set, or how a
prompt was cut into chunks. `native_body.h` says how: a fixed order for every sum, its own exponential.

Activations are contiguous float32 tensors on the CPU, weights contiguous float32 or bfloat16 (bfloat16
widens exactly). Every function returns new float32 tensors and uses `torch.get_num_threads()` threads.
Shapes: T rows (tokens), H hidden, I intermediate, E experts, k chosen experts a token.
"""

from __future__ import annotations

import ctypes
import importlib.machinery
import os
from pathlib import Path

# Both are read when torch is loaded, so a process that imports torch first sets them itself.
# Several workers share a machine's cores: OpenMP's default, to spin between parallel regions, takes the core
# from the worker that has something to do. Huge pages make reading weights a tenth faster.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

import torch
from torch import Tensor

from placement.errors import PotluckError

__all__ = [
    "ExpertNotHeld",
    "KernelsNotBuilt",
    "attention",
    "dense_ffn",
    "exp",
    "grid_to_float32",
    "instruction_set",
    "linear",
    "moe_partial_sum",
    "rms_norm",
    "route_top_k",
    "row_exponents",
    "sigmoid",
    "swiglu",
    "use_instruction_set",
]


class KernelsNotBuilt(PotluckError, ImportError):
    """The native kernels were not compiled for this Python."""


class ExpertNotHeld(PotluckError):
    """A row asks for an expert that is not in this store."""


_OUT_OF_MEMORY, _BAD_EXPERT_ID, _BAD_EXPONENT = -1, -2, -3

_float32, _bfloat16, _int32, _empty = torch.float32, torch.bfloat16, torch.int32, torch.empty
_num_threads = torch.get_num_threads


def _load() -> ctypes.CDLL:
    folder = Path(__file__).parent
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        path = folder / f"_native{suffix}"
        if path.exists():
            return ctypes.CDLL(str(path))
    raise KernelsNotBuilt(f"{folder} has no compiled _native library: build it with `pip install -e .`")


_native = _load()
_P, _I, _L, _F = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_float


def _function(name: str, argtypes: list[type], restype: type | None = None) -> ctypes._NamedFuncPointer:
    function = getattr(_native, f"potluck_{name}")
    function.argtypes, function.restype = argtypes, restype
    return function  # type: ignore[no-any-return]


_isa = _function("isa", [], ctypes.c_char_p)
_set_isa = _function("set_isa", [ctypes.c_char_p], _I)
_linear = _function("linear", [_P, _P, _I, _P, _L, _L, _L, _I])
_rms_norm = _function("rms_norm", [_P, _P, _I, _P, _L, _L, _F, _I, _I])
_exp = _function("exp", [_P, _P, _L])
_sigmoid = _function("sigmoid", [_P, _P, _L, _I])
_swiglu = _function("swiglu", [_P, _P, _P, _L, _F, _I])
_row_exponents = _function("row_exponents", [_P, _P, _L, _L, _I, _I, _I, _I])
_grid_to_float32 = _function("grid_to_float32", [_P, _P, _P, _L, _L, _I], _I)
_route_top_k = _function("route_top_k", [_P, _P, _P, _P, _L, _L, _L, _I, _F, _I], _I)
_attention = _function("attention", [_P, _P, _P, _P, _P, _I, _P, _L, _L, _L, _L, _L, _L, _L, _F, _I], _I)
_dense_ffn = _function("dense_ffn", [_P, _P, _P, _P, _I, _P, _L, _L, _L, _F, _I], _I)
_moe_partial_sum = _function(
    "moe_partial_sum",
    [_P, _P, _P, _P, _P, _P, _P, _P, _I, _P, _P, _L, _L, _L, _L, _L, _F, ctypes.c_int32, _I],
    _I,
)


def instruction_set() -> str:
    """The instruction set in use: "avx512", "avx2" or "baseline"."""
    return str(_isa().decode())


def use_instruction_set(name: str) -> bool:
    """Switch this process to another instruction set (for tests); False if this machine lacks it."""
    return bool(_set_isa(name.encode()))


def _check(x: Tensor, dtype: torch.dtype = _float32) -> Tensor:
    if x.dtype is not dtype or not x.is_contiguous() or not x.is_cpu:
        raise ValueError(
            f"kernel argument: expected a contiguous {dtype} CPU tensor, found {x.dtype} on {x.device}, "
            f"strides {x.stride()}"
        )
    return x


def _is_bf16(*weights: Tensor) -> int:
    """1 for bfloat16 weights, 0 for float32; all of one call must agree."""
    dtype = weights[0].dtype
    for weight in weights:
        if (
            weight.dtype is not dtype
            or (dtype is not _float32 and dtype is not _bfloat16)
            or not weight.is_contiguous()
            or not weight.is_cpu
        ):
            raise ValueError(
                "kernel weights: expected contiguous CPU tensors, all float32 or all bfloat16, found "
                + ", ".join(f"{w.dtype} on {w.device}, strides {w.stride()}" for w in weights)
            )
    return 1 if dtype is _bfloat16 else 0


def _mismatch(name: str, **shapes: Tensor) -> ValueError:
    return ValueError(
        f"{name}: shapes do not fit: " + ", ".join(f"{k} {list(v.shape)}" for k, v in shapes.items())
    )


def _raise_if_failed(status: int) -> None:
    if status == _OUT_OF_MEMORY:
        raise MemoryError("a kernel could not allocate its working memory")
    if status == _BAD_EXPONENT:
        raise ValueError("a scale exponent is outside -512 to 512")


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x times weight transposed.

    Args:
        x: [T, K] float32.
        weight: [N, K] float32 or bfloat16, as stored in checkpoints.

    Returns:
        [T, N] float32.
    """
    T, K = x.shape
    N, weight_K = weight.shape
    if weight_K != K:
        raise _mismatch("linear", x=x, weight=weight)
    out = _empty(T, N)
    _linear(
        _check(x).data_ptr(), weight.data_ptr(), _is_bf16(weight), out.data_ptr(), T, N, K, _num_threads()
    )
    return out


def rms_norm(x: Tensor, weight: Tensor, eps: float, zero_centered: bool) -> Tensor:
    """x / sqrt(mean(x^2) + eps) times the weight, or times 1 + weight when zero-centered.

    Args:
        x: [T, D] float32.
        weight: [D] float32 or bfloat16.

    Returns:
        [T, D] float32.
    """
    T, D = x.shape
    if weight.numel() != D:
        raise _mismatch("rms_norm", x=x, weight=weight)
    out = _empty(T, D)
    _rms_norm(
        _check(x).data_ptr(),
        weight.data_ptr(),
        _is_bf16(weight),
        out.data_ptr(),
        T,
        D,
        eps,
        1 if zero_centered else 0,
        _num_threads(),
    )
    return out


def exp(x: Tensor) -> Tensor:
    """e^x of float32 values, within 1 ulp or so; the exponential that every other kernel uses."""
    out = torch.empty_like(x)
    _exp(_check(x).data_ptr(), out.data_ptr(), x.numel())
    return out


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + e^-x), any shape, float32."""
    out = torch.empty_like(x)
    _sigmoid(_check(x).data_ptr(), out.data_ptr(), x.numel(), _num_threads())
    return out


def swiglu(gate: Tensor, up: Tensor, limit: float) -> Tensor:
    """Clamped SwiGLU: min(silu(gate), limit) times up clamped to +-limit; limit 0 means no clamp.

    Args:
        gate, up: [T, I] float32.

    Returns:
        [T, I] float32.
    """
    if gate.shape != up.shape:
        raise _mismatch("swiglu", gate=gate, up=up)
    out = torch.empty_like(gate)
    _swiglu(
        _check(gate).data_ptr(), _check(up).data_ptr(), out.data_ptr(), gate.numel(), limit, _num_threads()
    )
    return out


def row_exponents(x: Tensor, *, offset: int = 0, low: int = -126, high: int = 128) -> Tensor:
    """floor(log2(rms)) of every row of x [T, H] float32, plus offset, kept within low to high.

    A row of zeros or of subnormal size counts as -126 or less, a row with a value that is not finite
    as 128.

    Returns:
        int32 [T].
    """
    T, H = x.shape
    out = _empty(T, dtype=_int32)
    _row_exponents(_check(x).data_ptr(), out.data_ptr(), T, H, offset, low, high, _num_threads())
    return out


def grid_to_float32(values: Tensor, scale_exponents: Tensor) -> Tensor:
    """values * 2^exponent of each row, rounded once.

    Args:
        values: int32 [T, H].
        scale_exponents: int32 [T], within -512 to 512.

    Returns:
        [T, H] float32.
    """
    T, H = values.shape
    if scale_exponents.shape != (T,):
        raise _mismatch("grid_to_float32", values=values, scale_exponents=scale_exponents)
    out = _empty(T, H)
    status = _grid_to_float32(
        _check(values, _int32).data_ptr(),
        _check(scale_exponents, _int32).data_ptr(),
        out.data_ptr(),
        T,
        H,
        _num_threads(),
    )
    _raise_if_failed(status)
    return out


def route_top_k(
    logits: Tensor, bias: Tensor | None, top_k: int, normalise: bool, scaling_factor: float
) -> tuple[Tensor, Tensor]:
    """Choose each token's experts: the top_k largest sigmoid(logits) + bias, ties to the lower id.

    The weights are the sigmoids (without bias), divided by their sum if `normalise`, times
    `scaling_factor`.

    Args:
        logits: [T, E] float32.
        bias: [E] float32 or None.

    Returns:
        expert_ids int32 [T, top_k], best first, and weights float32 [T, top_k].
    """
    T, E = logits.shape
    if not 0 < top_k <= E or (bias is not None and bias.numel() != E):
        raise ValueError(f"route_top_k: logits {list(logits.shape)}, top_k {top_k}, bias of another size")
    expert_ids, weights = _empty(T, top_k, dtype=_int32), _empty(T, top_k)
    status = _route_top_k(
        _check(logits).data_ptr(),
        None if bias is None else _check(bias).data_ptr(),
        expert_ids.data_ptr(),
        weights.data_ptr(),
        T,
        E,
        top_k,
        1 if normalise else 0,
        scaling_factor,
        _num_threads(),
    )
    _raise_if_failed(status)
    return expert_ids, weights


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
        raise _mismatch("attention", q=q, k_new=k_new, v_new=v_new, k_cache=k_cache, v_cache=v_cache)
    cached = min(position, window - 1) if window else position
    if cached > slots:
        raise ValueError(f"attention: {cached} earlier keys are needed, the cache has {slots} slots")
    out = _empty(T, num_heads, D)
    status = _attention(
        _check(q).data_ptr(),
        k_new.data_ptr(),
        v_new.data_ptr(),
        k_cache.data_ptr(),
        v_cache.data_ptr(),
        _is_bf16(k_new, v_new, k_cache, v_cache),
        out.data_ptr(),
        T,
        num_heads,
        num_kv_heads,
        D,
        slots,
        position,
        window,
        scale,
        _num_threads(),
    )
    _raise_if_failed(status)
    return out


def dense_ffn(x: Tensor, gate: Tensor, up: Tensor, down: Tensor, limit: float) -> Tensor:
    """down(swiglu(gate(x), up(x))): the dense layers, the shared expert, the MTP layers.

    Args:
        x: [T, H] float32.
        gate, up: [I, H], down: [H, I]; all float32 or all bfloat16.
        limit: the SwiGLU clamp, 0 for none.

    Returns:
        [T, H] float32.
    """
    T, H = x.shape
    intermediate = gate.shape[0]
    if gate.shape != (intermediate, H) or up.shape != gate.shape or down.shape != (H, intermediate):
        raise _mismatch("dense_ffn", x=x, gate=gate, up=up, down=down)
    out = _empty(T, H)
    status = _dense_ffn(
        _check(x).data_ptr(),
        gate.data_ptr(),
        up.data_ptr(),
        down.data_ptr(),
        _is_bf16(gate, up, down),
        out.data_ptr(),
        T,
        H,
        intermediate,
        limit,
        _num_threads(),
    )
    _raise_if_failed(status)
    return out


def moe_partial_sum(
    x: Tensor,
    expert_ids: Tensor,
    weights: Tensor,
    scale_exponents: Tensor,
    slots: Tensor,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
    limit: float,
    top_k: int,
) -> tuple[Tensor, Tensor]:
    """Sum of each row's weighted expert outputs on the row's fixed-point grid.

    Every weighted output w * y (one float32 product) becomes rint(w * y * 2^-e) and the integers are
    added, so a row's experts may be split among any number of calls and workers and added in any order.
    Weights are read once for all rows of an expert.

    Args:
        x: [T, H] float32.
        expert_ids: int32 [T, k], k <= top_k; -1 where an expert is computed elsewhere.
        weights: float32 [T, k].
        scale_exponents: int32 [T], e of each row's grid 2^e, within -512 to 512.
        slots: int32 [E], the index of each expert in gate, up and down, or -1.
        gate, up: [n, I, H], down: [n, H, I]; all float32 or all bfloat16.
        limit: the SwiGLU clamp, 0 for none.
        top_k: the model's experts per token. An output beyond (2^31 - 1) // top_k grid units could
            overflow the sum: its row is flagged.

    Returns:
        int32 [T, H] and bool [T]: rows where an output left the grid or was not finite, whose sums
        mean nothing; ask again with a coarser grid.

    Raises:
        ExpertNotHeld: an id has no slot.
        ValueError: shapes that do not fit, an id or exponent out of range.
    """
    T, H = x.shape
    k = expert_ids.shape[1]
    n, intermediate, gate_H = gate.shape
    if (
        expert_ids.shape != (T, k)
        or weights.shape != (T, k)
        or scale_exponents.shape != (T,)
        or k > top_k
        or gate_H != H
        or up.shape != gate.shape
        or down.shape != (n, H, intermediate)
    ):
        raise _mismatch(
            "moe_partial_sum",
            x=x,
            expert_ids=expert_ids,
            weights=weights,
            scale_exponents=scale_exponents,
            gate=gate,
            up=up,
            down=down,
        )
    values, saturated = _empty(T, H, dtype=_int32), _empty(T, dtype=torch.bool)
    status = _moe_partial_sum(
        _check(x).data_ptr(),
        _check(expert_ids, _int32).data_ptr(),
        _check(weights).data_ptr(),
        _check(scale_exponents, _int32).data_ptr(),
        _check(slots, _int32).data_ptr(),
        gate.data_ptr(),
        up.data_ptr(),
        down.data_ptr(),
        _is_bf16(gate, up, down),
        values.data_ptr(),
        saturated.data_ptr(),
        T,
        H,
        intermediate,
        k,
        slots.shape[0],
        limit,
        (2**31 - 1) // top_k,
        _num_threads(),
    )
    if status > 0:
        raise ExpertNotHeld(
            f"expert {status - 1} is not held here: the sender's plan differs from this store's"
        )
    if status == _BAD_EXPERT_ID:
        raise ValueError(f"moe_partial_sum: an expert id is outside -1 to {slots.shape[0] - 1}")
    _raise_if_failed(status)
    return values, saturated
