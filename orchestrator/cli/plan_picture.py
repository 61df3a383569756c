"""A plan as a picture: one cell for each expert, coloured by the device that holds it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from orchestrator.palette import OKABE_ITO
from placement.errors import InputError
from placement.files.atomic import replacing
from placement.given.stats import RoutingStats
from placement.holders import NO_WORKER
from placement.units import size

if TYPE_CHECKING:
    from placement.plan import Plan

_SUFFIXES = (".png", ".svg")
# Lines of pixels of a layer: its experts' first holders, their second ones, white.
_FIRST, _SECOND, _GAP = 3, 2, 1
_LAYER_INCHES, _MOST_TICKS = 0.14, 14


def picture_suffix(path: str | os.PathLike[str]) -> str:
    """Such as ".png"; raises InputError for the name of a file that no picture can be written to."""
    suffix = Path(path).suffix.lower()
    if suffix not in _SUFFIXES:
        raise InputError(f"picture {path}: expected a name that ends in {' or '.join(_SUFFIXES)}")
    return suffix


def write_heatmap(plan: Plan, path: str | os.PathLike[str], stats: RoutingStats | None = None) -> None:
    """Layers down, experts across; the lower stripe of an expert's cell is the device of its next copy.

    Args:
        path: .png or .svg.
        stats: with them every layer's experts stand hottest first, without by number.

    Raises:
        InputError: another suffix, or a folder that cannot be written to.
        RoutingFileError: statistics of another model.
    """
    suffix = picture_suffix(path)
    if stats is not None:
        stats.check_fingerprint(plan.fingerprint, plan.model)
    import matplotlib.pyplot as plt
    from matplotlib.colors import to_rgb
    from matplotlib.patches import Patch

    first, second = _holders(plan, stats)
    labels, group_of = device_groups(plan)
    colours = np.array([to_rgb(colour) for colour in OKABE_ITO])[group_of]
    picture = np.ones((len(first), _FIRST + _SECOND + _GAP, first.shape[1], 3))
    picture[:, :_FIRST] = colours[first][:, None]
    picture[:, _FIRST : _FIRST + _SECOND] = colours[second][:, None]

    figure, axes = plt.subplots(figsize=(10, 1.5 + _LAYER_INCHES * len(first)), layout="constrained")
    lines = picture.reshape(-1, *picture.shape[2:])
    axes.imshow(lines, aspect="auto", interpolation="nearest")
    shown = range(0, len(first), -(-len(first) // _MOST_TICKS))
    middle = (_FIRST + _SECOND - 1) / 2
    axes.set_yticks(
        [row * picture.shape[1] + middle for row in shown], [str(plan.moe_layers[row]) for row in shown]
    )
    axes.set_ylabel("layer")
    axes.set_xlabel("experts of the layer, most used first" if stats is not None else "expert")
    title = f"Where each expert of {plan.model} in {plan.form} lives, policy {plan.policy}"
    if (first != second).any():
        title += "\nTwo colours in a cell: a copy of the expert on a second device, the lower stripe"
    axes.set_title(title, loc="left", size=10)
    patches = [Patch(color=OKABE_ITO[index], label=label) for index, label in enumerate(labels)]
    figure.legend(
        handles=patches,
        title="device (experts it holds)",
        loc="outside lower center",
        ncols=4,
        frameon=False,
        fontsize=9,
        title_fontsize=9,
    )
    try:
        with replacing(path) as file, plt.rc_context({"svg.hashsalt": "potluck", "svg.fonttype": "path"}):
            metadata = {"Date": None} if suffix == ".svg" else None
            figure.savefig(file, format=suffix[1:], dpi=150, metadata=metadata)
    finally:
        plt.close(figure)


def device_groups(plan: Plan) -> tuple[list[str], NDArray[np.int64]]:
    """As many groups of workers as there are colours: single ones or, of many, those of one kind and size.

    Returns:
        What the legend says of each group, those that hold most first where kinds are grouped; and int64
        [num_workers], each worker's group, 0 for those without experts.
    """
    held = plan.experts_per_tier()
    kinds: dict[object, list[int]] = {}
    holders = np.flatnonzero(held).tolist()
    for index in holders:
        worker = plan.tiers[index]
        single = len(holders) <= len(OKABE_ITO)
        kinds.setdefault(index if single else (worker.kind, worker.budget_bytes), []).append(index)
    groups = list(kinds.values())
    if len(holders) > len(OKABE_ITO):
        groups.sort(key=lambda group: -int(held[group].sum()))
    shown = groups if len(groups) <= len(OKABE_ITO) else groups[: len(OKABE_ITO) - 1]
    labels = []
    group_of = np.zeros(len(plan.tiers), dtype=np.int64)
    for place, group in enumerate(shown):
        worker = plan.tiers[group[0]]
        several = f"{len(group)} x {size(worker.budget_bytes)} of {worker.kind}"
        labels.append(f"{worker.name if len(group) == 1 else several} ({int(held[group].sum()):,})")
        group_of[group] = place
    if rest := [index for group in groups[len(shown) :] for index in group]:
        labels.append(f"{len(rest)} others ({int(held[rest].sum()):,})")
        group_of[rest] = len(shown)
    return labels, group_of


def _holders(plan: Plan, stats: RoutingStats | None) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
    """The first and the second worker of each expert, the first again where there is no second."""
    table = plan.holder_table.table
    if stats is not None:
        order = np.argsort(-stats.counts.astype(np.int64), axis=1, kind="stable")
        table = np.take_along_axis(table, order[:, :, None], axis=1)
    first = table[:, :, 0]
    if table.shape[2] == 1:
        return first, first
    return first, np.where(table[:, :, 1] == NO_WORKER, first, table[:, :, 1])
