"""Trains and exports potluck-tiny: `python -m models.train_tiny run`."""

from __future__ import annotations

import json
import time
from collections import deque
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from tokenizers import Tokenizer

from models.tiny.config import TinyConfig
from models.tiny.corpus import DOMAINS, SOURCES, documents, excerpts, version
from models.tiny.data import TokenMix, write_tokens
from models.tiny.evaluate import measure
from models.tiny.export import read_checkpoint, write_checkpoint, write_text
from models.tiny.tokenizer import train_tokenizer, write_tokenizer
from models.tiny.train import Recipe, Trainer

ROOT = Path(__file__).resolve().parent.parent
HELD_OUT_BYTES = 80_000
PROMPT_BYTES = 200
PROMPT_STARTS = {
    "python": "class UID:",
    "prose": "In addition to what has been already said of Catherine Morland",
    "technical": "The following command-line options control the database connection parameters.",
}
CHECKPOINT_STEPS, EXPORT_STEPS = 100, 500
RECIPE = Recipe()

app = typer.Typer(help="Train, export and measure potluck-tiny.", no_args_is_help=True)
console = Console(stderr=True)

BuildFolder = Annotated[Path, typer.Option("--build", help="Packages, tokens and checkpoints.")]
ModelFolder = Annotated[Path, typer.Option("--model", help="Where the model is written.")]
DEFAULT_BUILD, DEFAULT_MODEL = ROOT / "build" / "tiny", ROOT / "models" / "potluck-tiny"


@app.command()
def prepare(build: BuildFolder = DEFAULT_BUILD, model: ModelFolder = DEFAULT_MODEL) -> None:
    """Fetch the texts, train the tokenizer, write tokens, held-out text and prompts."""
    config = TinyConfig()
    docs = documents(build / "packages")
    tokenizer = train_tokenizer(docs, config.vocab_size)
    (model / "heldout").mkdir(parents=True, exist_ok=True)
    write_tokenizer(tokenizer, model, config.max_position_embeddings)
    prompts = {}
    for domain in DOMAINS:
        text = excerpts(docs, domain, HELD_OUT_BYTES)
        write_text(model / "heldout" / f"{domain}.txt", text)
        prompts[domain] = prompt_from(text, PROMPT_STARTS[domain])
    write_text(model / "prompts.json", json.dumps(prompts, indent=2) + "\n")
    sources = [
        {
            "domain": source.domain,
            "package": source.package,
            "version": version(source.package, build / "packages"),
            "licence": source.licence,
        }
        for source in SOURCES
    ]
    write_text(build / "sources.json", json.dumps(sources, indent=2) + "\n")
    ends = {"bos_token_id": config.bos_token_id, "eos_token_id": list(config.eos_token_id)}
    write_text(model / "generation_config.json", json.dumps(ends, indent=2) + "\n")
    write_tokens(tokenizer, docs, build / "tokens.npz")


def prompt_from(text: str, start: str) -> str:
    """A few lines of a text from where `start` stands in it."""
    lines, size = [], 0
    for line in text[text.index(start) :].splitlines(keepends=True):
        lines.append(line)
        size += len(line)
        if size >= PROMPT_BYTES:
            break
    return "".join(lines).rstrip("\n")


@app.command()
def run(
    build: BuildFolder = DEFAULT_BUILD,
    model: ModelFolder = DEFAULT_MODEL,
    trunk_steps: Annotated[int, typer.Option(help="Steps of the trunk.")] = RECIPE.trunk_steps,
    mtp_steps: Annotated[int, typer.Option(help="Steps of the MTP layers.")] = RECIPE.mtp_steps,
) -> None:
    """Train from the newest checkpoint, or from the start, and export."""
    if not (build / "tokens.npz").exists():
        prepare(build, model)
    torch.set_num_threads(1)
    recipe = Recipe(trunk_steps=trunk_steps, mtp_steps=mtp_steps)
    trainer = Trainer(TinyConfig(), recipe, TokenMix.read(build / "tokens.npz", recipe.seed))
    checkpoint, log = build / "checkpoint.pt", build / "log.jsonl"
    if checkpoint.exists():
        trainer.resume(checkpoint)
        console.print(f"resumed at {trainer.phase} step {trainer.step}")
    with _progress() as progress, log.open("a") as records:
        tasks = {
            "trunk": progress.add_task("trunk", total=trunk_steps, loss=float("nan")),
            "mtp": progress.add_task("mtp", total=mtp_steps, loss=float("nan")),
        }
        if trainer.phase == "mtp":
            progress.update(tasks["trunk"], completed=trunk_steps)
        recent = deque[float](maxlen=50)
        while not trainer.finished:
            started = time.perf_counter()
            figures = trainer.advance()
            recent.append(figures["loss"])
            progress.update(tasks[trainer.phase], completed=trainer.step, loss=sum(recent) / len(recent))
            figures |= {"step": trainer.step, "step_s": time.perf_counter() - started}
            records.write(json.dumps({"phase": trainer.phase} | figures) + "\n")
            records.flush()
            if trainer.step % CHECKPOINT_STEPS == 0 or trainer.finished:
                trainer.save(checkpoint)
            if trainer.step % EXPORT_STEPS == 0 or trainer.finished:
                write_checkpoint(trainer.weights(), model)


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        speed_estimate_period=300,
    )


@app.command()
def export(build: BuildFolder = DEFAULT_BUILD, model: ModelFolder = DEFAULT_MODEL) -> None:
    """Write the newest checkpoint as a model folder."""
    recipe = Recipe()
    trainer = Trainer(TinyConfig(), recipe, TokenMix.read(build / "tokens.npz", recipe.seed))
    trainer.resume(build / "checkpoint.pt")
    write_checkpoint(trainer.weights(), model)
    console.print(f"{model}: {trainer.phase} step {trainer.step}")


@app.command("measure")
def measure_model(build: BuildFolder = DEFAULT_BUILD, model: ModelFolder = DEFAULT_MODEL) -> None:
    """Measure the exported model and write training.json."""
    recipe = Recipe()
    net = read_checkpoint(model)
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    records = [json.loads(line) for line in (build / "log.jsonl").read_text().splitlines()]
    # A resumed run repeats the steps after its checkpoint: the last record of a step is the one that counted.
    steps = {(record["phase"], record["step"]): record for record in records}.values()
    report = {
        "parameters": sum(p.numel() for p in net.parameters()),
        "recipe": asdict(recipe),
        "training_tokens": {
            phase: recipe.steps(phase) * recipe.shards * recipe.tokens_per_shard for phase in ("trunk", "mtp")
        },
        "wall_s": {
            phase: round(sum(r["step_s"] for r in steps if r["phase"] == phase)) for phase in ("trunk", "mtp")
        },
        "median_step_s": {
            phase: round(median(r["step_s"] for r in steps if r["phase"] == phase), 3)
            for phase in ("trunk", "mtp")
        },
        "sources": json.loads((build / "sources.json").read_text()),
        **measure(net, tokenizer, model / "heldout", TokenMix.read(build / "tokens.npz", recipe.seed)),
    }
    write_text(model / "training.json", json.dumps(report, indent=2) + "\n")
    console.print_json(data=report["held_out"])


if __name__ == "__main__":
    app()
