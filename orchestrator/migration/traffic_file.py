"""What the runs of a cluster chose lately, kept between them beside the plan in use."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.migration.online_routing import NOTHING, Lately
from placement.errors import PotluckError
from placement.files.atomic import replacing
from placement.files.numpy_file import read_npz
from placement.model_shape import ModelShape
from placement.plan import Plan

TRAFFIC = "traffic.npz"
_GROUPS = ("before", "since", "rest")
# 16,384 tokens of a model with twice the layers and choices of the largest today.
_MOST_BYTES = 2**26


class TrafficError(PotluckError):
    """The file of the newest text's choices cannot be used."""


def write_traffic(lately: Lately, plan: Plan, folder: Path) -> None:
    """Write it whole or not at all.

    Args:
        plan: in use, without rescues' tiers.
    """
    arrays: dict[str, Any] = {"plan": np.array(_name_of(plan))}
    for name, pieces in zip(_GROUPS, (lately.before, lately.since, lately.rest), strict=True):
        arrays[name] = np.concatenate(pieces) if pieces else np.zeros((0, 0, 0), dtype=np.uint16)
        arrays[f"{name}_tokens"] = np.array([len(piece) for piece in pieces], dtype=np.int64)
    with replacing(folder / TRAFFIC) as file:
        np.savez(file, **arrays)


def read_traffic(folder: Path, plan: Plan, shape: ModelShape) -> Lately:
    """What was written last; nothing where nothing was, or the plan in use is another since.

    Raises:
        TrafficError: unreadable, or not such choices.
    """
    path = folder / TRAFFIC
    if not path.exists():
        return NOTHING
    arrays = read_npz(path, TrafficError, "what runs chose lately", most_bytes=_MOST_BYTES)
    wanted = {"plan", *_GROUPS, *(f"{name}_tokens" for name in _GROUPS)}
    if set(arrays) != wanted:
        raise TrafficError(f"{path}: expected arrays {', '.join(sorted(wanted))}")
    # Another plan was made for other text.
    if arrays["plan"].shape != () or str(arrays["plan"]) != _name_of(plan):
        return NOTHING
    before, since, rest = (
        _pieces(arrays[name], arrays[f"{name}_tokens"], shape, f"{path}: {name}") for name in _GROUPS
    )
    return Lately(before, since, rest)


def _pieces(
    chosen: NDArray[np.generic], num_tokens: NDArray[np.generic], shape: ModelShape, where: str
) -> tuple[NDArray[np.uint16], ...]:
    if num_tokens.ndim != 1 or num_tokens.dtype != np.int64:
        raise TrafficError(f"{where}_tokens: expected whole numbers")
    lengths: Sequence[int] = num_tokens.tolist()
    if not lengths:
        return ()
    expected = (sum(lengths), shape.num_moe_layers, shape.top_k)
    if min(lengths) < 1 or chosen.shape != expected or chosen.dtype != np.uint16:
        raise TrafficError(f"{where}: expected uint16 {list(expected)}, found {chosen.dtype} {chosen.shape}")
    ids = chosen.astype(np.uint16, copy=False)
    if ids.max() >= shape.num_experts:
        raise TrafficError(f"{where}: expected experts up to {shape.num_experts - 1}")
    return tuple(np.split(ids, np.cumsum(lengths)[:-1]))


def _name_of(plan: Plan) -> str:
    """Of where its experts are; how fast its boxes are does not matter."""
    digest = hashlib.sha256(plan.fingerprint.encode())
    digest.update(np.ascontiguousarray(plan.holder_table.table).tobytes())
    return digest.hexdigest()
