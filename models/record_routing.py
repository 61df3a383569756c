"""Writes potluck-tiny's routing.npz, the experts its training mix uses: `python -m models.record_routing`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from models.tiny.data import MIX, TokenMix
from models.train_tiny import DEFAULT_BUILD, DEFAULT_MODEL, RECIPE
from orchestrator.routing_trace import record_trace
from orchestrator.session import load_local
from placement.given.stats import RoutingStats
from workers.formats.open_model import open_model

SEQUENCES, LENGTH = 192, 512
# Far from any training step: the same documents, other places in them.
FRESH_STEP = 2 * 10**9


def main(
    build: Annotated[Path, typer.Option(help="Where training left its tokens.")] = DEFAULT_BUILD,
    model: Annotated[Path, typer.Option(help="The trained model.")] = DEFAULT_MODEL,
) -> None:
    """Run sequences of the training mix through the head and save the counts."""
    torch.set_num_threads(1)
    mix = TokenMix.read(build / "tokens.npz", RECIPE.seed)
    sequences = mix.batch(FRESH_STEP, 0, SEQUENCES, LENGTH).tolist()
    head = load_local(open_model(model), torch.float32)
    shares = ", ".join(f"{share:.0%} {domain}" for domain, share in MIX.items())
    source = f"training mix: {SEQUENCES} pieces of {LENGTH} tokens, {shares}"
    trace = record_trace(head, sequences, LENGTH)
    stats = RoutingStats.from_trace(head.config.shape(model.name), trace, source)
    stats.without_trace().save(model / "routing.npz")
    for layer, counts in zip(stats.moe_layers, stats.counts, strict=True):
        mean = counts.mean()
        typer.echo(
            f"layer {layer}: {int((counts == 0).sum())} dead experts, "
            f"least {counts.min() / mean:.2f}, most {counts.max() / mean:.2f} of the mean"
        )


if __name__ == "__main__":
    typer.run(main)
