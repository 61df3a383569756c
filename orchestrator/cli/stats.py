"""`potluck stats`: run text through a model and note which experts it uses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.progress import Progress

from orchestrator.cli.inputs import files_read, load_shape, model_folder
from orchestrator.cli.options import Json
from orchestrator.cli.output import console, errors, print_json, print_note, share, table
from orchestrator.model.attention import SequenceSlice
from orchestrator.model.routing_recorder import RoutingRecorder
from orchestrator.model.step35 import Step35Model
from orchestrator.runnable import DtypeName
from orchestrator.session import load_local
from orchestrator.tokenizer import Tokenizer
from placement.errors import InputError
from placement.files.atomic import check_targets
from placement.files.input_file import read_text
from placement.given.stats import RoutingStats
from workers.formats.open_model import files_folder

CHUNK_TOKENS = 256
# More would run for days.
MOST_TEXT_BYTES = 64_000_000


def stats(
    texts: Annotated[list[Path], typer.Argument(help="Text files, UTF-8.", metavar="TEXT...")],
    model: Annotated[Path, typer.Option(help="Model directory or GGUF file.")],
    out: Annotated[Path, typer.Option(help="Routing file to write (.npz, see docs/formats.md).")],
    trace: Annotated[bool, typer.Option(help="Keep every token's experts, not only their counts.")] = False,
    window: Annotated[int, typer.Option(min=1, help="Tokens seen together; longer text is cut.")] = 2048,
    dtype: Annotated[DtypeName, typer.Option(help="Arithmetic of the run.")] = DtypeName.float32,
    json: Json = False,
) -> None:
    """Run text through the model and write which experts its tokens use."""
    check_targets([out], inputs=files_read(model, *texts))
    shape = load_shape(str(model_folder(model)))
    tokenizer = Tokenizer.load(files_folder(model))
    documents = [tokenizer.encode_prompt(read_document(path)) for path in texts]
    head = load_local(model, getattr(torch, dtype))
    result = record_routing(
        head, documents, window, source=", ".join(path.name for path in texts), name=shape.name
    )
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


def record_routing(
    head: Step35Model, documents: Sequence[Sequence[int]], window: int, *, source: str, name: str
) -> RoutingStats:
    """Routing of token sequences, each cut into windows that are run on their own.

    Raises:
        InputError: no token at all, or one outside the vocabulary.
    """
    windows = [
        document[start : start + window]
        for document in documents
        for start in range(0, len(document), window)
    ]
    if not windows:
        raise InputError("the texts are empty; expected at least one token")
    config = head.config
    head.recorder = RoutingRecorder(config.moe_layers, config.moe_num_experts, config.moe_top_k)
    with Progress(console=errors, transient=True) as progress:
        task = progress.add_task("tokens", total=sum(map(len, windows)))
        for token_ids in windows:
            head.check_token_ids(token_ids)
            cache = head.new_cache()
            for start in range(0, len(token_ids), CHUNK_TOKENS):
                chunk = torch.tensor(token_ids[start : start + CHUNK_TOKENS])
                head.forward(chunk, [SequenceSlice(cache, len(chunk))])
                progress.advance(task, len(chunk))
    return RoutingStats.from_trace(config.shape(name), head.recorder.trace(), source)


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
