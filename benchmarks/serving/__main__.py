"""A server under load: how fast it answers 1 to 64 users, and what bounds it.

    python -m benchmarks.serving [MODEL] [--users 1,2,4,8,16,32,64] [--rounds 4] [--llama-server PROGRAM]

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
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.serving.asks import Asks, Lengths
from benchmarks.serving.growth import SEQUENCES, Growth, bytes_read, gap_of
from benchmarks.serving.learned import Learned, Run
from benchmarks.serving.load import Figures, Load, figures, run_load
from benchmarks.serving.predicted import Prediction, Rounds, Setup, predict
from benchmarks.serving.recording import Step, read_steps
from benchmarks.serving.report import growth_table, load_table, predicted_table
from benchmarks.serving.server import Server, llamacpp, potluck
from benchmarks.serving.step_costs import Experts

TINY = Path("models/potluck-tiny")
CONTEXT = 2048
_SLOTS = 8
"""Of llama.cpp's server: as many sequences as ours computes at a time."""
_ASKS_A_RUN = 10_000
"""More than a run sends: each has numbers of its own."""


def main(
    model: Annotated[Path, typer.Argument(help="Directory or GGUF file.")] = TINY,
    users: Annotated[str, typer.Option(help="At a time, one run each.")] = "1,2,4,8,16,32,64",
    rounds: Annotated[int, typer.Option(min=1, help="Of all numbers of users, one after another.")] = 4,
    seconds: Annotated[float, typer.Option(min=1, help="Measured of each run of a round.")] = 5.0,
    warm_up: Annotated[float, typer.Option(min=0, help="Seconds before that.")] = 2.0,
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
    with tempfile.TemporaryDirectory(prefix="potluck-serving-") as folder, ExitStack() as servers:
        file = Path(folder) / "steps.jsonl"
        own = servers.enter_context(potluck(model, ("--context", str(CONTEXT), *drafts), file))
        their_own = (
            servers.enter_context(their_server(llama_server, model, threads)) if llama_server else None
        )
        ours, theirs = in_turns(own, their_own, asks, counts * rounds, warm_up, seconds, console)
        steps = read_steps(file.read_text().splitlines(keepends=True))
    runs = [run_of(count, ours, steps) for count in counts]
    found = [figures(run.load) for run in runs]
    their = [
        figures(Load.joined([each for each in theirs if each.users == count])) for count in counts if theirs
    ]
    console.print(load_table(found, their))
    grown = growth(model, asks, growth_tokens)
    their_gaps: dict[int, float] = {}
    if llama_server is not None:
        with their_server(llama_server, model, threads) as server:
            their_gaps = gaps(server, asks, growth_tokens)
    console.print(growth_table(grown, their_gaps))
    predictions = predicted(model, asks, runs, warm_up, seconds, mtp)
    console.print(predicted_table(found, predictions))
    if out is not None:
        out.write_text(json.dumps(document(found, their, grown, their_gaps, predictions), indent=2))


def in_turns(
    own: Server,
    their: Server | None,
    asks: Asks,
    counts: Sequence[int],
    warm_up: float,
    seconds: float,
    console: Console,
) -> tuple[list[Load], list[Load]]:
    """Each number of users on our server, and on theirs if there is one: a machine's speed changes by the
    minute, so that nothing is compared that was not measured soon after.
    """
    ours, theirs = list[Load](), list[Load]()
    first = 0
    for count in counts:
        ours.append(driven(own, asks, count, warm_up, seconds, first))
        if their is not None:
            theirs.append(driven(their, asks, count, warm_up, seconds, first))
        first += max(len(ours[-1].sent), _ASKS_A_RUN)
        console.print(f"{count} users: {figures(ours[-1]).tokens_per_s:.1f} tokens/s", style="dim")
    return ours, theirs


def run_of(users: int, loads: Sequence[Load], steps: Sequence[Step]) -> Run:
    """All rounds of so many users, with the steps between their first request and their last answer."""
    of = [load for load in loads if load.users == users]
    spans = [
        (min(each.begun_s for each in load.answers), max(each.ended_s for each in load.answers))
        for load in of
    ]
    during = [step for step in steps if any(begun_s <= step.ended_s <= ended_s for begun_s, ended_s in spans)]
    return Run(Load.joined(of), during)


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
    model: Path, asks: Asks, runs: Sequence[Run], warm_up: float, seconds: float, mtp: int | None
) -> list[tuple[Prediction, Prediction]]:
    """Each load from what was learned of the others, and from what was learned of itself."""
    import torch

    from orchestrator.model.mtp import MtpDrafter
    from orchestrator.scheduling.kv_budget import KvBudget
    from orchestrator.scheduling.limits import Limits
    from orchestrator.session import load_local
    from placement.pass_costs import costs_of_reading
    from workers.formats.open_model import open_model

    if len(runs) < 2:
        return []
    opened = open_model(model)
    shape = opened.shape
    drafts = shape.num_mtp_layers if mtp is None else mtp
    head = load_local(opened, torch.bfloat16)
    limits = Limits(CONTEXT)
    behind: tuple[int, ...] = ()
    if drafts:
        state = MtpDrafter(head, drafts).new_state()
        # Behind a text as long as can be.
        state.rows[0].begin_at(CONTEXT)
        behind = tuple(state.behind)
    kv = KvBudget(tuple(head.kv_sizes(drafts)), limits.pass_rows)
    # Of the server's costs too the proportions alone are used; bits change none of them.
    setup = Setup(limits, kv, costs_of_reading(shape, 16.0), behind)

    def said(one: Run, by: Sequence[Run]) -> Prediction:
        learned = Learned.of(by, Experts(shape.num_experts, shape.top_k))
        return predict(learned, asks, one.load.users, Rounds(one.firsts, warm_up, seconds), setup)

    return [(said(one, [run for run in runs if run is not one]), said(one, [one])) for one in runs]


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
