"""`potluck trace`: routing without a model's weights, for plans and simulations on paper."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from rich.progress import Progress

from orchestrator.cli.inputs import files_read, load_shape
from orchestrator.cli.options import Json
from orchestrator.cli.output import errors, print_json, print_note
from placement.errors import InputError
from placement.files.atomic import check_targets
from placement.given.trace_writer import check_num_tokens, write_trace
from placement.given.traces import DOMAINS, GENERAL, SyntheticRouter


def trace(
    out: Annotated[Path, typer.Option(help="Routing file to write (.npz, see docs/formats.md).")],
    model: Annotated[
        str, typer.Option(help="Built-in name, or a model directory; its weights are not read.")
    ] = "step-3.5-flash",
    domain: Annotated[
        str, typer.Option(help=f"Kind of text, as measured on OLMoE: {', '.join(DOMAINS)}.")
    ] = GENERAL.name,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens, in documents of 256.")] = 4096,
    seed: Annotated[
        int, typer.Option(min=0, help="Another one gives other text: one to plan with, one to judge by.")
    ] = 0,
    json: Json = False,
) -> None:
    """Write a synthetic trace: which experts the tokens of invented text use."""
    shape = load_shape(model)
    if domain not in DOMAINS:
        raise InputError(f"--domain: expected {' or '.join(DOMAINS)}, found {domain!r}")
    # Here already: the bar would leave an empty line above the message.
    check_num_tokens(tokens, shape)
    check_targets([out], inputs=files_read(model))
    pieces = SyntheticRouter(shape).stream(DOMAINS[domain], tokens, stream_seed=seed)
    with Progress(console=errors, transient=True) as progress:
        source = f"synthetic {domain}, seed {seed}"
        write_trace(out, shape, _show_progress(pieces, tokens, progress), tokens, source)
    if json:
        print_json(
            {
                "model": shape.name,
                "domain": domain,
                "tokens": tokens,
                "seed": seed,
                "source": source,
                "out": str(out),
            }
        )
        return
    print_note(f"wrote {out}: {tokens:,} tokens of synthetic {domain} text for {shape.name}")


def _show_progress(
    pieces: Iterator[NDArray[np.uint16]], num_tokens: int, progress: Progress
) -> Iterator[NDArray[np.uint16]]:
    task = progress.add_task("tokens", total=num_tokens)
    for piece in pieces:
        yield piece
        progress.advance(task, len(piece))
