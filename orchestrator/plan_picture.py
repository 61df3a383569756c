"""A plan as a picture: one pixel for each expert, coloured by the device that holds it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from placement.atomic import replacing
from placement.errors import InputError
from placement.stats import RoutingStats

if TYPE_CHECKING:
    from placement.plan import Plan

# Twenty colours can be told apart; more devices take them in turn and the legend stops there.
_MOST_COLOURS = 20
_SUFFIXES = (".png", ".svg")


def write_heatmap(plan: Plan, path: str | os.PathLike[str], stats: RoutingStats | None = None) -> None:
    """Layers down, experts across; an expert with replicas has the colour of its first holder, paler.

    Args:
        path: .png or .svg.
        stats: with them every layer's experts stand hottest first, without by number.

    Raises:
        InputError: another suffix, or a folder that cannot be written to.
        RoutingFileError: statistics of another model.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in _SUFFIXES:
        raise InputError(f"picture {path}: expected a name that ends in {' or '.join(_SUFFIXES)}")
    if stats is not None:
        stats.check_fingerprint(plan.fingerprint, plan.model)
    import matplotlib.pyplot as plt
    from matplotlib.patches import Patch

    table = plan.holder_table.table
    first, replicated = table[:, :, 0], (table >= 0).sum(axis=2) > 1
    if stats is not None:
        order = np.argsort(-stats.counts.astype(np.int64), axis=1, kind="stable")
        first, replicated = (np.take_along_axis(values, order, axis=1) for values in (first, replicated))
    palette = np.array(plt.get_cmap("tab20").colors)  # type: ignore[attr-defined]
    # Pairs of a strong and a pale shade: the pale ones last, since pale means copied.
    colours = np.concatenate([palette[::2], palette[1::2]])
    picture = colours[first % _MOST_COLOURS]
    picture[replicated] = 0.5 + 0.5 * picture[replicated]

    figure, axes = plt.subplots(figsize=(10, 1.4 + 0.11 * len(table)), layout="constrained")
    axes.imshow(picture, aspect="auto", interpolation="nearest")
    ticks = np.linspace(0, len(table) - 1, min(len(table), 12)).round().astype(int)
    axes.set_yticks(ticks, [str(plan.moe_layers[i]) for i in ticks])
    axes.set_ylabel("layer")
    axes.set_xlabel("experts, most used first" if stats is not None else "expert")
    axes.set_title(f"{plan.model}, {plan.dtype}, policy {plan.policy}", loc="left", size=10)
    held = plan.experts_per_worker().tolist()
    patches = [
        Patch(color=colours[index % _MOST_COLOURS], label=f"{worker.name} ({held[index]})")
        for index, worker in enumerate(plan.workers[:_MOST_COLOURS])
        if held[index]
    ]
    if replicated.any():
        patches.append(Patch(color="white", label="paler: with copies"))
    figure.legend(handles=patches, loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    try:
        with replacing(path) as file, plt.rc_context({"svg.hashsalt": "potluck", "svg.fonttype": "path"}):
            metadata = {"Date": None} if suffix == ".svg" else None
            figure.savefig(file, format=suffix[1:], dpi=150, metadata=metadata)
    finally:
        plt.close(figure)
