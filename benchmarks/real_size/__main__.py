"""Everything at real size in one command, a phase after another:

    python -m benchmarks.real_size FOLDER [--moe-layers 4] [--experts q4_k] [--llamacpp DIR] [--rounds 2]

FOLDER takes the random model (11 GB with 4 MoE layers) and what each phase found. A phase whose result lies
there is not run again, so a run that was stopped goes on where it was. The model is deleted at the end unless
--keep. Each phase takes less than ten minutes on two cores.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from benchmarks.llamacpp import PASS_ROWS, VARIABLE, LlamaCpp
from benchmarks.random_gguf import SMALL, FileShape, FileTypes, expert_types, write_random_gguf
from benchmarks.real_size.machine import Machine, probe
from benchmarks.real_size.measured import LayoutRun
from benchmarks.real_size.predict import Layout, narrow, software
from benchmarks.real_size.report import (
    Round,
    Theirs,
    memory_lines,
    parts_table,
    passes_table,
    whole_model_table,
)
from benchmarks.real_size.work import FileWork
from benchmarks.timing import best_s
from orchestrator.sampling import Sampler, choose_in_ram
from orchestrator.sampling_params import GREEDY
from placement.weight_format import WeightFormat
from workers.formats.open_model import load_config, model_name
from workers.probe.random_blocks import TYPES

WORKERS = 2
"""Of the second layout."""
MODEL, NARROW = "real-size.gguf", "narrow.gguf"
console = Console(width=200)


def main(
    folder: Annotated[Path, typer.Argument(help="For the model and what was found.")],
    moe_layers: Annotated[int, typer.Option(min=1, help="About 2.55 GB each in q4_k.")] = 4,
    experts: Annotated[str, typer.Option(help="A form or gate/up/down; layers with commas.")] = "q4_k",
    head: Annotated[str, typer.Option(help="Attention, dense and shared FFN.")] = "q4_k",
    output: Annotated[str, typer.Option(help="lm_head.")] = "q4_k",
    llamacpp: Annotated[
        Path | None, typer.Option(help=f"Folder of its programs; default {VARIABLE}.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1)] = os.cpu_count() or 1,
    rounds: Annotated[int, typer.Option(min=1, help="Of runs, ours and llama.cpp's in turn.")] = 2,
    turns: Annotated[int, typer.Option(min=1, help="Passes of each number of rows.")] = 12,
    context: Annotated[int, typer.Option(min=0, help="Of the second set of passes; 0: none.")] = 4096,
    skip: Annotated[str, typer.Option(help="Phases to leave out: workers, llamacpp, with commas.")] = "",
    small: Annotated[bool, typer.Option("--small", help="Shapes of tests, for a try.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the model.")] = False,
) -> None:
    """Write the model, probe, run ours and llama.cpp in turn, print the tables."""
    for form in (head, output):
        if form not in TYPES:
            raise typer.BadParameter(f"{form!r}: expected one of {', '.join(TYPES)}")
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(threads)
    shape = replace(SMALL if small else FileShape(), moe_layers=moe_layers, mtp_layers=0)
    types = FileTypes(expert_types(experts), head, output)
    model, slim = folder / MODEL, folder / NARROW
    once(model, lambda: write_random_gguf(model, shape, types))
    once(slim, lambda: write_random_gguf(slim, narrow(shape), types))
    counts = (0,) if "workers" in skip else (0, WORKERS)
    build = None if "llamacpp" in skip else LlamaCpp.find(llamacpp, threads)
    if build is None:
        console.print(f"llama.cpp is left out: name the folder of its programs by --llamacpp or {VARIABLE}")
    file_shape = load_config(model).shape(model_name(model))
    work = FileWork.of(model, file_shape)
    forms = sorted(work.forms, key=lambda form: form.name)
    each = max(1, threads // (1 + WORKERS))
    for number in counts:
        probes(folder, forms, f"narrow-{number}", threads, each if number else None)
        own_run(folder, slim, f"narrow-{number}", number, turns=4 * turns, context=context)
    for turn in range(rounds):
        for number in counts:
            warm(model)
            probes(folder, forms, f"ours-{number}-{turn}", threads, each if number else None)
            own_run(folder, model, f"ours-{number}-{turn}", number, turns=turns, context=context)
        if build is not None:
            warm(model)
            their_run(folder, build, model, turn, context)
    report(folder, model, counts, rounds, context, has_theirs=build is not None)
    if not keep:
        model.unlink()
        slim.unlink()


def probes(folder: Path, forms: Sequence[WeightFormat], name: str, threads: int, each: int | None) -> None:
    """The machine right before a run: as one process uses it, and with `each` threads as one of several."""
    for kind, number in (("alone", threads), ("each", each)):
        if number is not None:
            out = folder / f"{name}-{kind}.json"
            once(out, partial(_probe, forms, number, out))


def _probe(forms: Sequence[WeightFormat], threads: int, out: Path) -> None:
    probe(forms, threads).write(out)


def machines(folder: Path, name: str) -> tuple[Machine, Machine]:
    """What `probes` found, the second the same as the first where there is one process."""
    alone, each = (folder / f"{name}-{kind}.json" for kind in ("alone", "each"))
    return Machine.read(alone), Machine.read(each if each.exists() else alone)


def own_run(folder: Path, model: Path, name: str, workers: int, *, turns: int, context: int) -> None:
    """One run in a fresh process, its file warm in the page cache."""
    out = folder / f"{name}.json"

    def run() -> None:
        warm(model)
        command = [sys.executable, "-m", "benchmarks.real_size.run", str(model), "--out", str(out)]
        command += ["--workers", str(workers), "--turns", str(turns), "--context", str(context)]
        subprocess.run(command, check=True)

    once(out, run)


def their_run(folder: Path, build: LlamaCpp, model: Path, turn: int, context: int) -> None:
    """llama.cpp's round, three phases."""
    passes, tokens, prompt = (
        folder / f"theirs-{name}-{turn}.json" for name in ("passes", "tokens", "prompt")
    )
    once(passes, lambda: _write(passes, build.pass_s(model, PASS_ROWS)))
    contexts = [0, context] if context else [0]
    once(tokens, lambda: _write(tokens, {behind: build.decode_s(model, behind) for behind in contexts}))
    once(prompt, lambda: _write(prompt, build.prefill_s(model)))


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))


def once(path: Path, phase: Callable[[], object]) -> None:
    """Run a phase unless what it writes is there."""
    if path.exists():
        console.print(f"{path.name}: there already")
        return
    started = time.perf_counter()
    console.print(f"{path.name} …")
    phase()
    console.print(f"{path.name}: {time.perf_counter() - started:.0f} s")


def warm(model: Path) -> None:
    """Read the file, so that it lies in the page cache as far as that goes."""
    with model.open("rb", buffering=0) as file:
        buffer = bytearray(1 << 24)
        while file.readinto(buffer):
            pass


def report(
    folder: Path, model: Path, counts: tuple[int, ...], rounds: int, context: int, *, has_theirs: bool
) -> None:
    theirs = _theirs(folder, rounds) if has_theirs else None
    vocabulary = load_config(model).vocab_size
    logits, choice = torch.randn(vocabulary), Sampler(GREEDY).choice(0)
    choice_s = best_s(lambda: choose_in_ram(logits.numpy(), choice))
    slim = {number: LayoutRun.read(folder / f"narrow-{number}.json") for number in counts}
    probed = {number: machines(folder, f"narrow-{number}") for number in counts}
    found = software(folder / NARROW, slim[0], slim.get(WORKERS), probed[0], probed.get(WORKERS), choice_s)
    alone, _ = machines(folder, "ours-0-0")
    console.print(f"\n{alone.instruction_set}, {alone.threads} threads, memory read at", end=" ")
    console.print(
        f"{alone.read_bytes_per_s / 1e9:.1f} GB/s; software: {asdict(found.overheads)}, {found.link}"
    )
    for rates in alone.from_cache:
        pairs = zip(rates.rows, rates.flops_per_s, strict=True)
        console.print(
            f"{rates.form} from cache, GFLOP/s by rows: { ({r: round(f / 1e9) for r, f in pairs}) }"
        )
    for number in counts:
        runs = [LayoutRun.read(folder / f"ours-{number}-{turn}.json") for turn in range(rounds)]
        compared = []
        for turn, run in enumerate(runs):
            here, share = machines(folder, f"ours-{number}-{turn}")
            layout = found.put_into(Layout.of(model, number, here, share))
            compared.append(Round(run, here, layout))
        console.rule("one process" if not number else f"{number} workers")
        console.print(passes_table(compared, theirs, context))
        console.print(parts_table(runs))
        for line in memory_lines(runs, model.stat().st_size):
            console.print(line)
        if not number:
            console.print(whole_model_table(runs, compared[0].layout.work, alone, theirs))


def _theirs(folder: Path, rounds: int) -> Theirs:
    passes: dict[int, list[float]] = {}
    tokens: dict[int, list[float]] = {}
    prompts: list[float] = []
    for turn in range(rounds):
        for name, found in (("passes", passes), ("tokens", tokens)):
            for key, seconds in json.loads((folder / f"theirs-{name}-{turn}.json").read_text()).items():
                found.setdefault(int(key), []).append(seconds)
        prompts.append(json.loads((folder / f"theirs-prompt-{turn}.json").read_text()))
    return Theirs(passes, tokens, prompts)


if __name__ == "__main__":
    typer.run(main)
