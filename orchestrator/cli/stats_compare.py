"""`potluck stats compare`: how alike two routing files are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.options import Json
from orchestrator.cli.output import console, print_json, share, table
from orchestrator.cli.routing_pair import load_routing_pair
from placement.errors import InputError
from placement.routing.compare import HOT_SHARE, compare


def stats_compare(
    first: Annotated[Path, typer.Argument(help="Routing file of `potluck stats`.", metavar="A")],
    second: Annotated[Path, typer.Argument(help="Another of the same model.", metavar="B")],
    hot_share: Annotated[
        float, typer.Option(help="Which experts are hot: this share of them, the most used.")
    ] = HOT_SHARE,
    json: Json = False,
) -> None:
    """Say how alike two routing files are, layer by layer."""
    if not 0 < hot_share <= 1:
        raise InputError(f"--hot-share: expected above 0 and at most 1, found {hot_share}")
    pair = load_routing_pair(first, second)
    result = compare(*pair, hot_share)
    layers = [
        {
            "layer": layer,
            "total_variation": float(variation),
            "hot_overlap": float(overlap),
            "log_popularity_correlation": float(correlation),
        }
        for layer, variation, overlap, correlation in zip(
            pair[0].moe_layers,
            result.total_variation,
            result.hot_overlap,
            result.log_popularity_correlation,
            strict=True,
        )
    ]
    if json:
        print_json(
            {
                "model": pair[0].model,
                "files": [
                    {"file": str(path), "source": stats.source, "tokens": stats.num_tokens}
                    for path, stats in zip((first, second), pair, strict=True)
                ],
                "hot_share": hot_share,
                "total_variation": float(result.total_variation.mean()),
                "hot_overlap": float(result.hot_overlap.mean()),
                "log_popularity_correlation": float(result.log_popularity_correlation.mean()),
                "layers": layers,
            }
        )
        return
    rows = [
        (
            str(row["layer"]),
            share(row["total_variation"]),
            share(row["hot_overlap"]),
            f"{row['log_popularity_correlation']:.2f}",
        )
        for row in layers
    ]
    for name, stats in zip("AB", pair, strict=True):
        console.print(f"{name}: {stats.num_tokens:,} tokens, {stats.source}", markup=False)
    title = (
        f"{pair[0].model}: choices that differ, hottest {hot_share:.0%} shared, correlation of ln popularity"
    )
    console.print(table(title, ("layer", "differ", "hot shared", "correlation"), rows))
    console.print(
        f"On average: {result.summary()}. By chance {hot_share:.0%} of the hottest would be shared."
    )
