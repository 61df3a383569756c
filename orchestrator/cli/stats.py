"""`potluck stats`: run text through a model and note which experts it uses."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.progress import Progress

from orchestrator.cli.inputs import files_read, model_folder
from orchestrator.cli.options import Json
from orchestrator.cli.output import console, errors, print_json, print_note, share, table
from orchestrator.routing_trace import record_trace
from orchestrator.runnable import DtypeName
from orchestrator.session import load_local
from orchestrator.tokenizer import Tokenizer
from placement.errors import InputError
from placement.files.atomic import check_targets
from placement.files.input_file import read_text
from placement.given.stats import RoutingStats
from workers.model_config import Step35Config

# More would run for days.
MOST_TEXT_BYTES = 64_000_000


def stats(
    texts: Annotated[list[Path], typer.Argument(help="Text files, UTF-8.", metavar="TEXT...")],
    model: Annotated[Path, typer.Option(help="Model directory.")],
    out: Annotated[Path, typer.Option(help="Routing file to write (.npz, see docs/formats.md).")],
    trace: Annotated[bool, typer.Option(help="Keep every token's experts, not only their counts.")] = False,
    window: Annotated[int, typer.Option(min=1, help="Tokens seen together; longer text is cut.")] = 2048,
    dtype: Annotated[DtypeName, typer.Option(help="Arithmetic of the run.")] = DtypeName.float32,
    json: Json = False,
) -> None:
    """Run text through the model and write which experts its tokens use."""
    check_targets([out], inputs=files_read(model, *texts))
    shape = Step35Config.load(model_folder(model)).shape(model.resolve().name)
    tokenizer = Tokenizer.load(model)
    documents = [tokenizer.encode_prompt(read_document(path)) for path in texts]
    head = load_local(model, getattr(torch, dtype))
    with Progress(console=errors, transient=True) as progress:
        task = progress.add_task("tokens", total=sum(map(len, documents)))
        recorded = record_trace(head, documents, window, lambda done: progress.advance(task, done))
    result = RoutingStats.from_trace(shape, recorded, ", ".join(path.name for path in texts))
    (result if trace else result.without_trace()).save(out)

    hot = hottest_share(result)
    if json:
        print_json(
            {
                "model": result.model,
                "tokens": result.num_tokens,
                "source": result.source,
                "trace": trace,
                "out": str(out),
                "layers": [
                    {
                        "layer": layer,
                        "unused_experts": int((row == 0).sum()),
                        "hottest_tenth_share": float(tenth),
                    }
                    for layer, row, tenth in zip(result.moe_layers, result.counts, hot, strict=True)
                ],
            }
        )
        return
    rows = [
        (str(layer), str(int((row > 0).sum())), share(float(tenth)))
        for layer, row, tenth in zip(result.moe_layers, result.counts, hot, strict=True)
    ]
    title = f"{result.num_tokens} tokens, {result.num_experts} experts a layer, top {result.top_k}"
    console.print(table(title, ("layer", "experts used", "hottest tenth carries"), rows))
    print_note(f"wrote {out}")


def hottest_share(stats: RoutingStats) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Share of activations that each layer's most used tenth of experts carries, float64 [num_moe_layers]."""
    ordered = np.sort(stats.counts.astype(np.float64), axis=1)[:, ::-1]
    tenth = max(1, round(stats.num_experts / 10))
    shares: np.ndarray[tuple[int], np.dtype[np.float64]] = ordered[:, :tenth].sum(axis=1) / ordered.sum(
        axis=1
    )
    return shares


def read_document(path: Path) -> str:
    """A text file of a user.

    Raises:
        InputError: it cannot be read, is no UTF-8, too large, or has no text.
    """
    text = read_text(path, InputError, "a UTF-8 text file", most_bytes=MOST_TEXT_BYTES)
    if not text.strip():
        raise InputError(f"{path}: no text in it; expected some to run through the model")
    return text
