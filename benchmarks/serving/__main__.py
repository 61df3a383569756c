"""A server under load: how fast it answers 1 to 64 users, and what bounds it.

    python -m benchmarks.serving [MODEL] [--users 1,2,4,8,16,32,64] [--seconds 20] [--llama-server PROGRAM]

Starts `potluck serve` on loopback and asks for completions over HTTP, with prompts and answers of mixed
lengths from a seed. Users ask again as soon as they are answered; who is refused waits as it is told. For a
GGUF file, --llama-server also drives llama.cpp's server, in turns with ours.

MODEL that has a tokenizer: the shipped one, or a random file of real layer shapes (`python -m
benchmarks.random_gguf OUT.gguf --moe-layers 2 --tokenizer models/potluck-tiny`).
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.serving.asks import Asks, Lengths
from benchmarks.serving.growth import SEQUENCES, Growth, bytes_read, gap_of
from benchmarks.serving.load import Figures, Load, figures, run_load
from benchmarks.serving.predicted import Learned, Prediction, predict
from benchmarks.serving.recording import Step, read_steps
from benchmarks.serving.report import growth_table, load_table, predicted_table
from benchmarks.serving.server import Server, llamacpp, potluck

TINY = Path("models/potluck-tiny")
CONTEXT = 2048
_SLOTS = 8
"""Of llama.cpp's server: as many sequences as ours computes at a time."""


@dataclass(frozen=True, slots=True)
class Ours:
    """One load on our server, and its steps."""

    load: Load
    steps: Sequence[Step]


def main(
    model: Annotated[Path, typer.Argument(help="Directory or GGUF file.")] = TINY,
    users: Annotated[str, typer.Option(help="At a time, one run each.")] = "1,2,4,8,16,32,64",
    seconds: Annotated[float, typer.Option(min=1, help="Measured of each run.")] = 20.0,
    warm_up: Annotated[float, typer.Option(min=0, help="Seconds before that.")] = 5.0,
    prompt: Annotated[int, typer.Option(min=2, help="Median tokens of prompts.")] = 64,
    answer: Annotated[int, typer.Option(min=2, help="Median tokens of answers.")] = 48,
    growth_tokens: Annotated[int, typer.Option(min=8, help="Of each answer of the growth runs.")] = 128,
    mtp: Annotated[int | None, typer.Option(min=0, help="Drafts; default the model's.")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    llama_server: Annotated[Path | None, typer.Option(help="llama.cpp's program.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Of llama.cpp's server.")] = os.cpu_count() or 1,
    out: Annotated[Path | None, typer.Option("--json", help="File for all figures.")] = None,
) -> None:
    """Run, and print the tables."""
    console = Console(width=160)
    counts = [int(count) for count in users.split(",")]
    text = held_out(model) if model == TINY else ()
    asks = Asks(seed, Lengths(prompt, 8, 8 * prompt), Lengths(answer, 4, 4 * answer), text)
    drafts = () if mtp is None else ("--mtp", str(mtp))
    ours: list[Ours] = []
    theirs: list[Load] = []
    first = 0
    with tempfile.TemporaryDirectory(prefix="potluck-serving-") as folder:
        for count in counts:
            steps = Path(folder) / f"{count}.jsonl"
            with potluck(model, ("--context", str(CONTEXT), *drafts), steps) as server:
                load = driven(server, asks, count, warm_up, seconds, first)
            ours.append(Ours(load, read_steps(steps.read_text().splitlines(keepends=True))))
            if llama_server is not None:
                with their_server(llama_server, model, threads) as server:
                    theirs.append(driven(server, asks, count, warm_up, seconds, first))
            first += max(len(load.sent), 10_000)
            console.print(f"{count} users: {figures(load).tokens_per_s:.1f} tokens/s", style="dim")
    found = [figures(each.load) for each in ours]
    their = [figures(each) for each in theirs]
    console.print(load_table(found, their))
    grown = growth(model, asks, growth_tokens)
    their_gaps: dict[int, float] = {}
    if llama_server is not None:
        with their_server(llama_server, model, threads) as server:
            their_gaps = gaps(server, asks, growth_tokens)
    console.print(growth_table(grown, their_gaps))
    predictions = predicted(model, asks, ours, warm_up, seconds, mtp)
    console.print(predicted_table(found, predictions))
    if out is not None:
        out.write_text(json.dumps(document(found, their, grown, their_gaps, predictions), indent=2))


def driven(server: Server, asks: Asks, users: int, warm_up: float, seconds: float, first: int) -> Load:
    """One load on a server that runs."""
    return asyncio.run(run_load(server.address, asks, users, warm_up_s=warm_up, seconds=seconds, first=first))


@contextmanager
def their_server(program: Path, model: Path, threads: int) -> Iterator[Server]:
    with llamacpp(program, model, users=_SLOTS, context=CONTEXT, threads=threads) as server:
        yield server


def held_out(model: Path) -> tuple[int, ...]:
    """Tokens of text that the shipped model did not learn from."""
    from orchestrator.tokenizer import Tokenizer

    texts = [path.read_text(encoding="utf-8") for path in sorted((model / "heldout").glob("*.txt"))]
    return tuple(Tokenizer.load(model).encode("\n".join(texts)))


def gaps(server: Server, asks: Asks, tokens: int) -> dict[int, float]:
    """Seconds from token to token, by sequences decoded together."""
    found = {}
    for sequences in SEQUENCES:
        found[sequences] = asyncio.run(gap_of(server.address, asks, sequences, tokens, 10**6 * sequences))
    return found


def growth(model: Path, asks: Asks, tokens: int) -> list[Growth]:
    """Measured without drafts, beside the bytes that passes read."""
    with potluck(model, ("--context", str(CONTEXT), "--mtp", "0")) as server:
        gaps(server, asks, 8)
        found = gaps(server, asks, tokens)
    texts = [asks.ask(2 * 10**6 + number).prompt for number in range(max(SEQUENCES) * 2)]
    read = bytes_read(model, texts, "bfloat16")
    return [Growth(count, gap_s, *read[count]) for count, gap_s in found.items()]


def predicted(
    model: Path, asks: Asks, ours: Sequence[Ours], warm_up: float, seconds: float, mtp: int | None
) -> list[tuple[Prediction, Prediction]]:
    """Each load from what was learned of the others, and from what was learned of itself."""
    import torch

    from orchestrator.scheduling.kv_budget import KvBudget
    from orchestrator.scheduling.limits import Limits
    from orchestrator.session import load_local
    from workers.formats.open_model import open_model

    if len(ours) < 2:
        return []
    opened = open_model(model)
    drafts = opened.shape.num_mtp_layers if mtp is None else mtp
    limits = Limits(CONTEXT)
    kv = KvBudget(tuple(load_local(opened, torch.bfloat16).kv_sizes(drafts)), limits.pass_rows)

    def said(one: Ours, runs: Sequence[Sequence[Step]]) -> Prediction:
        learned = Learned.of(runs, drafts)
        users, first = one.load.users, one.load.sent[0]
        return predict(
            learned, asks, users, warm_up_s=warm_up, seconds=seconds, first=first, limits=limits, kv=kv
        )

    return [
        (said(one, [other.steps for other in ours if other is not one]), said(one, [one.steps]))
        for one in ours
    ]


def document(
    found: Sequence[Figures],
    their: Sequence[Figures],
    grown: Sequence[Growth],
    their_gaps: dict[int, float],
    predictions: Sequence[tuple[Prediction, Prediction]],
) -> dict[str, Any]:
    """All figures, in seconds and bytes."""
    return {
        "potluck": [asdict(each) for each in found],
        "llama_cpp": [asdict(each) for each in their],
        "growth": [asdict(each) for each in grown],
        "llama_cpp_gap_s": their_gaps,
        "predicted_by_others": [asdict(others) for others, _ in predictions],
        "predicted_by_itself": [asdict(itself) for _, itself in predictions],
    }


if __name__ == "__main__":
    typer.run(main)
