"""`potluck stats`: which experts a model uses, on text or as another engine recorded it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Group
from rich.progress import Progress

from orchestrator.cli.inputs import files_read, load_shape, model_folder, name_in_errors
from orchestrator.cli.options import Json
from orchestrator.cli.output import console, errors, print_json, print_note, share, table
from orchestrator.routing_trace import record_trace
from orchestrator.runnable import DEFAULT_DTYPE, DtypeName
from orchestrator.session import load_local
from orchestrator.tokenizer import Tokenizer
from placement.errors import InputError, NonFiniteError, RoutingFileError
from placement.files.atomic import check_targets
from placement.files.input_file import read_text
from placement.given.stats import RoutingStats
from placement.interop.read import detect, read_routing
from placement.model_shape import ModelShape
from placement.routing.routing_profile import RoutingProfile
from workers.formats.open_model import open_model

DEFAULT_WINDOW = 2048
# More would run for days.
MOST_TEXT_BYTES = 64_000_000


def stats(
    model: Annotated[
        str,
        typer.Option(
            help="Model directory or GGUF file; with --from also a built-in name such as step-3.5-flash."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Routing file to write (.npz, see docs/formats.md).")],
    texts: Annotated[
        list[Path] | None,
        typer.Argument(help="Text files, UTF-8, to run through the model.", metavar="TEXT..."),
    ] = None,
    recordings: Annotated[
        list[Path] | None,
        typer.Option(
            "--from",
            help="In place of texts: what vLLM, SGLang, llama-imatrix or others recorded (docs/interop.md). "
            "Given several times, the oldest first: all together.",
            metavar="FILE",
        ),
    ] = None,
    half_life: Annotated[
        float | None,
        typer.Option(help="Of --from: a token counts half as much this many tokens later.", metavar="TOKENS"),
    ] = None,
    trace: Annotated[bool, typer.Option(help="Keep every token's experts, not only their counts.")] = False,
    window: Annotated[
        int | None,
        typer.Option(min=1, help=f"Tokens seen together; longer text is cut; default {DEFAULT_WINDOW:,}."),
    ] = None,
    dtype: Annotated[
        DtypeName | None, typer.Option(help=f"Arithmetic of the run; default {DEFAULT_DTYPE}.")
    ] = None,
    json: Json = False,
) -> None:
    """Write which experts a model's tokens use: of text, or as another engine recorded it."""
    if not texts and not recordings:
        raise InputError("potluck stats: missing argument 'TEXT...', or --from FILE in its place")
    if recordings:
        if texts:
            raise InputError(f"--from: in place of text files; leave out {texts[0]}")
        if window is not None or dtype is not None:
            raise InputError("--window and --dtype: of a run of text; leave them out with --from")
        if half_life is not None and trace:
            raise InputError("--half-life: weighs counts; leave out --trace")
    elif half_life is not None:
        raise InputError("--half-life: expected --from FILE, recordings from the oldest to the latest")
    check_targets([out], inputs=files_read(model, *(texts or ()), *(recordings or ())))
    if recordings:
        result, kinds = _read_recordings(recordings, load_shape(model), half_life)
        if trace and result.trace is None:
            raise RoutingFileError(
                f"--trace: {', '.join(map(str, recordings))}: counts only; expected every token's experts"
            )
    else:
        folder = model_folder(Path(model))
        kinds = []
        result = _run_texts(folder, texts or (), window or DEFAULT_WINDOW, dtype or DEFAULT_DTYPE)
    (result if trace else result.without_trace()).save(out)

    if json:
        print_json(_document(result, kinds, out, trace=trace))
        return
    console.print(_layers_table(result))
    read = [f"{path} as {kind}" for path, kind in zip(recordings or (), kinds, strict=True)]
    print_note("; ".join([*(f"read {what}" for what in read), f"wrote {out}"]))


def _read_recordings(
    paths: Sequence[Path], shape: ModelShape, half_life_tokens: float | None
) -> tuple[RoutingStats, list[str]]:
    """All recordings together, and the kind of each (a key of READERS)."""
    kinds = [detect(path) for path in paths]
    parts = [read_routing(path, shape, kind) for path, kind in zip(paths, kinds, strict=True)]
    if half_life_tokens is None:
        first, *others = parts
        for other in others:
            first = first.merge(other)
        return first, kinds
    profile = RoutingProfile.empty(shape, half_life_tokens)
    for part in parts:
        profile = profile.observe_counts(part)
    sources = "; ".join(dict.fromkeys(part.source for part in parts))
    return profile.to_stats(shape, f"{sources}; half-life {half_life_tokens:g} tokens"), kinds


def _run_texts(model: Path, texts: Sequence[Path], window: int, dtype: DtypeName) -> RoutingStats:
    opened = open_model(model)
    tokenizer = Tokenizer.load(model, opened.checkpoint.metadata)
    documents = [tokenizer.encode_prompt(read_document(path)) for path in texts]
    head = load_local(opened, getattr(torch, dtype))
    with Progress(console=errors, transient=True) as progress:
        task = progress.add_task("tokens", total=sum(map(len, documents)))
        with name_in_errors(model, NonFiniteError):
            recorded = record_trace(head, documents, window, lambda done: progress.advance(task, done))
    return RoutingStats.from_trace(opened.shape, recorded, ", ".join(path.name for path in texts))


def _document(result: RoutingStats, kinds: Sequence[str], out: Path, *, trace: bool) -> dict[str, object]:
    """docs/json.md lists the keys."""
    return {
        "model": result.model,
        "tokens": result.num_tokens,
        "source": result.source,
        "kinds": list(kinds),
        "trace": trace,
        "out": str(out),
        "layers": [
            {"layer": layer, "unused_experts": int((row == 0).sum()), "hottest_tenth_share": float(tenth)}
            for layer, row, tenth in zip(result.moe_layers, result.counts, hottest_share(result), strict=True)
        ],
    }


def _layers_table(result: RoutingStats) -> Group:
    rows = [
        (str(layer), str(int((row > 0).sum())), share(float(tenth)))
        for layer, row, tenth in zip(result.moe_layers, result.counts, hottest_share(result), strict=True)
    ]
    title = f"{result.num_tokens} tokens, {result.num_experts} experts a layer, top {result.top_k}"
    return table(title, ("layer", "experts used", "hottest tenth carries"), rows)


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
