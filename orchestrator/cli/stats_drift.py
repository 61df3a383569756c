"""`potluck stats drift`: has routing changed?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray

from orchestrator.cli.options import Json
from orchestrator.cli.output import console, print_json, table
from orchestrator.cli.routing_pair import load_routing_pair
from placement.errors import RoutingFileError
from placement.given.stats import RoutingStats
from placement.routing.documents import count_documents, even_lengths
from placement.routing.drift import drift_test
from placement.routing.routing_profile import DOCUMENT_TOKENS


def stats_drift(
    reference: Annotated[
        Path, typer.Argument(help="Routing file with a trace: what a plan was made from.", metavar="A")
    ],
    recent: Annotated[
        Path, typer.Argument(help="Another of the same model: the latest traffic.", metavar="B")
    ],
    document_tokens: Annotated[
        int,
        typer.Option(min=1, help="Traces are cut into pieces of this length; longer than a topic lasts."),
    ] = DOCUMENT_TOKENS,
    false_alarm_rate: Annotated[
        float, typer.Option(help="How often to see a change where there is none.")
    ] = 0.01,
    permutations: Annotated[int, typer.Option(min=1, help="More give a finer p-value.")] = 999,
    seed: Annotated[int, typer.Option(min=0, help="Of the permutations.")] = 0,
    json: Json = False,
) -> None:
    """Test whether routing has changed from one trace to another."""
    paths = (reference, recent)
    pair = load_routing_pair(*paths)
    before, lately = (
        _count_pieces(stats, path, document_tokens) for stats, path in zip(pair, paths, strict=True)
    )
    result = drift_test(
        before, lately, false_alarm_rate=false_alarm_rate, num_permutations=permutations, seed=seed
    )
    if json:
        print_json(
            {
                "model": pair[0].model,
                "files": [
                    {
                        "file": str(path),
                        "source": stats.source,
                        "tokens": stats.num_tokens,
                        "documents": len(pieces),
                    }
                    for path, stats, pieces in zip(paths, pair, (before, lately), strict=True)
                ],
                "document_tokens": document_tokens,
                "p_value": result.p_value,
                "false_alarm_rate": result.false_alarm_rate,
                "drifted": result.drifted,
            }
        )
        return
    rows = [
        (f"{name}: {path.name}", f"{stats.num_tokens:,}", str(len(pieces)))
        for name, path, stats, pieces in zip("AB", paths, pair, (before, lately), strict=True)
    ]
    title = f"{pair[0].model}: pieces of {document_tokens:,} tokens, shuffled {permutations:,} times"
    console.print(table(title, ("trace", "tokens", "pieces"), rows))
    if result.drifted:
        verdict = "The routing has changed: plan again with what is recent."
    else:
        verdict = "No change is seen."
    console.print(
        f"{verdict} p = {result.p_value:.3g}, the chance of a difference this large if nothing had changed; "
        f"a change is called at {result.false_alarm_rate:g} or less."
    )


def _count_pieces(stats: RoutingStats, path: Path, document_tokens: int) -> NDArray[np.uint32]:
    """Choices in each piece of a trace, uint32 [num_pieces, num_moe_layers, num_experts]."""
    if stats.trace is None:
        raise RoutingFileError(
            f"{path}: counts only; expected a trace, which `potluck stats --trace` keeps: totals cannot "
            "tell a change from one document that differs"
        )
    lengths = even_lengths(len(stats.trace), document_tokens)
    return count_documents(stats.trace, lengths, stats.num_experts)
