"""From another engine's arrays to this project's: which layers, which experts, whole tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from placement.errors import RoutingFileError
from placement.given.apportion import apportion
from placement.given.stats import RoutingStats
from placement.model_shape import ModelShape

# Engines lose or double a few tokens in some layers (dropped, padded, approximate recorders); a layer that
# is further off than this share is of another run.
_MOST_ROW_DIFFERENCE = 0.05
# Sums of choices must stay exact in float64.
_MOST_CHOICES = 2**53
# Whose experts are sorted together, so that memory stays bounded.
_TOKENS_AT_ONCE = 16_384
# The largest number in a byte: what is left of a larger one, or a mark for "none".
_MARKER = 255
_FEWEST_TO_JUDGE = 16


def moe_rows(array: NDArray[Any], axis: int, shape: ModelShape, where: str) -> NDArray[Any]:
    """The MoE layers of an array that has a row for each, or for each layer of the model.

    Args:
        array: `axis` is as long as the MoE layers, the trunk, or the trunk and the draft layers.

    Raises:
        RoutingFileError: another number of layers.
    """
    found = array.shape[axis]
    if found == shape.num_moe_layers:
        return array
    if found in (shape.num_hidden_layers, len(shape.attention)):
        return np.take(array, shape.moe_layers, axis=axis)
    raise RoutingFileError(
        f"{where}: expected {shape.num_moe_layers} (MoE) or {shape.num_hidden_layers} (all) layers of "
        f"{shape.name}, found {found}"
    )


def logical_loads(
    loads: NDArray[Any], physical_to_logical: NDArray[Any] | None, shape: ModelShape, where: str
) -> NDArray[np.float64]:
    """Loads by expert, the copies of one expert added up.

    Args:
        loads: numbers [..., num_layers, num_slots]; leading axes (steps, ranks) are added up.
        physical_to_logical: int [num_layers, num_slots], the expert in each slot; None where slots are
            experts.

    Returns:
        float64 [num_moe_layers, num_experts].

    Raises:
        RoutingFileError: another number of layers or experts, or slots of experts the model does not have.
    """
    if loads.ndim < 2 or loads.dtype.kind not in "iuf":
        raise RoutingFileError(
            f"{where}: expected numbers [..., layers, experts], found {loads.dtype} {list(loads.shape)}"
        )
    if loads.size and not (np.isfinite(loads).all() and loads.min() >= 0):
        raise RoutingFileError(f"{where}: expected loads of at least 0, found negative or not finite ones")
    by_layer = loads.reshape(-1, *loads.shape[-2:]).sum(axis=0, dtype=np.float64)
    by_layer = moe_rows(by_layer, 0, shape, where)
    if physical_to_logical is None:
        if by_layer.shape[1] != shape.num_experts:
            raise RoutingFileError(
                f"{where}: expected {shape.num_experts} experts, found {by_layer.shape[1]}; with redundant "
                "experts the file must hold their physical-to-logical map too"
            )
        return by_layer
    slots = check_slots(physical_to_logical, shape, where)
    if slots.shape != by_layer.shape:
        raise RoutingFileError(
            f"{where}: expected as many slots in loads and map, found {list(by_layer.shape)} and "
            f"{list(slots.shape)} (layers, slots)"
        )
    experts = np.zeros((shape.num_moe_layers, shape.num_experts))
    np.add.at(experts, (np.arange(len(slots))[:, None], slots), by_layer)
    return experts


def check_slots(physical_to_logical: NDArray[Any], shape: ModelShape, where: str) -> NDArray[np.int64]:
    """The expert in each slot, int64 [num_moe_layers, num_slots].

    Raises:
        RoutingFileError: not such a map, or experts the model does not have.
    """
    if physical_to_logical.ndim != 2 or physical_to_logical.dtype.kind not in "iu":
        raise RoutingFileError(
            f"{where}: physical-to-logical map: expected whole numbers [layers, slots], found "
            f"{physical_to_logical.dtype} {list(physical_to_logical.shape)}"
        )
    slots = moe_rows(physical_to_logical, 0, shape, f"{where}: physical-to-logical map").astype(np.int64)
    if slots.size == 0 or slots.min() < 0 or slots.max() >= shape.num_experts:
        found = f"{slots.min()} to {slots.max()}" if slots.size else "none"
        raise RoutingFileError(
            f"{where}: physical-to-logical map: expected experts 0 to {shape.num_experts - 1}, found {found}"
        )
    return slots


def stats_from_loads(shape: ModelShape, loads: NDArray[np.float64], source: str, where: str) -> RoutingStats:
    """Statistics from loads of experts.

    Rows that are whole and agree are taken as they are. Else (approximate recorders, decayed loads, dropped
    tokens) each is scaled to the longest and rounded by largest remainders, and the source says so.

    Args:
        loads: float64 [num_moe_layers, num_experts], not negative and finite.

    Raises:
        RoutingFileError: an empty layer, layers of different runs, or an expert with more tokens than there
            were.
    """
    sums = loads.sum(axis=1)
    empty = np.flatnonzero(sums == 0)
    if len(empty):
        raise RoutingFileError(
            f"{where}: layer {shape.moe_layers[empty[0]]} has no tokens ({len(empty)} of {len(sums)} MoE "
            "layers): expected every one to be recorded"
        )
    if sums.max() >= _MOST_CHOICES:
        raise RoutingFileError(f"{where}: expected fewer than 2^53 choices a layer, found {sums.max():g}")
    if sums.min() < (1 - _MOST_ROW_DIFFERENCE) * sums.max():
        low, high = int(sums.argmin()), int(sums.argmax())
        raise RoutingFileError(
            f"{where}: {sums[low]:g} choices in layer {shape.moe_layers[low]}, {sums[high]:g} in layer "
            f"{shape.moe_layers[high]}: expected the same tokens in every layer"
        )
    num_tokens = max(1, round(float(sums.max()) / shape.top_k))
    largest = np.unravel_index(int(loads.argmax()), loads.shape)
    if loads[largest] > num_tokens * (1 + _MOST_ROW_DIFFERENCE):
        raise RoutingFileError(
            f"{where}: expert {largest[1]} of layer {shape.moe_layers[largest[0]]} has {loads[largest]:g} "
            f"tokens of {num_tokens}: expected at most one choice a token; is top {shape.top_k} right?"
        )
    if np.all(sums == num_tokens * shape.top_k) and np.all(loads == np.rint(loads)):
        return RoutingStats.from_counts(shape, loads.astype(np.uint64), num_tokens, source)
    counts = apportion(loads, num_tokens * shape.top_k)
    return RoutingStats.from_counts(shape, counts, num_tokens, f"{source}, scaled to {num_tokens} tokens")


def check_ids(ids: NDArray[Any], shape: ModelShape, where: str) -> NDArray[np.int32]:
    """`ids` as int32, where they are experts of the model or -1 (none).

    Raises:
        RoutingFileError: an expert that the model does not have.
    """
    if ids.size and (ids.min() < -1 or ids.max() >= shape.num_experts):
        raise RoutingFileError(
            f"{where}: expected experts 0 to {shape.num_experts - 1} (-1: none), "
            f"found {ids.min()} to {ids.max()}"
        )
    return ids.astype(np.int32, copy=False)


def stats_from_ids(shape: ModelShape, ids: NDArray[Any], source: str, where: str) -> RoutingStats:
    """Statistics with a trace from expert ids per token.

    Tokens that were not recorded are left out: those with -1 (padding, cached prefix) and those that name an
    expert twice in a layer, which no router does but a buffer of zeros looks like.

    Args:
        ids: int [num_tokens, num_moe_layers, top_k].

    Raises:
        RoutingFileError: other ids, or no recorded token.
    """
    if ids.ndim != 3 or ids.shape[2] != shape.top_k or ids.dtype.kind not in "iu":
        raise RoutingFileError(
            f"{where}: expected whole numbers [tokens, layers, {shape.top_k}], "
            f"found {ids.dtype} {list(ids.shape)}"
        )
    checked = check_ids(ids, shape, where)
    _check_no_marker(checked, shape, where)
    recorded = np.zeros(len(checked), dtype=bool)
    for start in range(0, len(checked), _TOKENS_AT_ONCE):
        in_order = np.sort(checked[start : start + _TOKENS_AT_ONCE], axis=2)
        distinct = (np.diff(in_order, axis=2) > 0).all(axis=(1, 2))
        recorded[start : start + _TOKENS_AT_ONCE] = distinct & (in_order[:, :, 0] >= 0).all(axis=1)
    if not recorded.any():
        raise RoutingFileError(
            f"{where}: none of {len(checked)} tokens has its experts recorded in every layer"
        )
    left_out = int((~recorded).sum())
    note = f", without {left_out} tokens that were not recorded" if left_out else ""
    return RoutingStats.from_trace(shape, checked[recorded].astype(np.uint16), source + note)


def _check_no_marker(ids: NDArray[np.int32], shape: ModelShape, where: str) -> None:
    """Refuse ids of which one choice reads 255 in every token and layer, as no router's does."""
    if shape.num_experts <= _MARKER or ids.shape[0] * ids.shape[1] < _FEWEST_TO_JUDGE:
        return
    always = np.flatnonzero((ids == _MARKER).all(axis=(0, 1)))
    if len(always):
        raise RoutingFileError(
            f"{where}: choice {always[0] + 1} of {shape.top_k} reads {_MARKER} in every token and layer: it "
            f"marks no expert, or numbers beyond {_MARKER} were cut off when they were stored as bytes; "
            "record them as int16 or wider"
        )
