"""One layout measured from its start: loading, decode, passes of several tokens, prefill, memory.

    python -m benchmarks.real_size.run FILE.gguf --workers 0 --out run.json

A process of its own, so that its memory and its time to the first token are those of a fresh start.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import psutil
import torch
import typer

from benchmarks.real_size.measured import LayoutRun, Passes
from orchestrator.cli.even_plan import even_plan
from orchestrator.generate import GenerationParams, new_sequence, prefill, step
from orchestrator.model.routing_recorder import RoutingRecorder
from orchestrator.model.step35 import Step35Model
from orchestrator.sequence import SequenceState
from orchestrator.session import open_session
from workers.formats.open_model import kept_forms, open_model

DTYPE = "bfloat16"
"""Of caches; weights stay as the file has them."""
SHORT = 16
"""Tokens before the passes with next to no context."""
CHUNK = 512
MOST_ROWS = 4
"""Of one text: its newest token and three drafts, as many as its caches take back."""
WORKER = "workers.serve"


def measure(
    model: Path, num_workers: int, *, rows: tuple[int, ...], context: int, turns: int, prefill_tokens: int
) -> LayoutRun:
    """Open a session as `potluck generate` does and time it.

    Args:
        context: of the second set of passes; 0 for none.
        turns: passes of each number of rows, after one to warm up.
    """
    opened = open_model(model)
    forms = kept_forms(opened.checkpoint, opened.config, DTYPE)
    plan = even_plan(opened.shape, num_workers, DTYPE, forms=forms)
    random = np.random.default_rng(1)
    with open_session(opened, plan) as session:
        head = session.head
        start(head, [1], max_tokens=1)
        first_token_s = time.time() - psutil.Process().create_time()
        found = []
        for behind in (SHORT, context):
            if behind:
                several = rows if behind == SHORT else [number for number in rows if number <= MOST_ROWS]
                count = -(-max(several) // MOST_ROWS)
                texts = [start(head, tokens_of(random, head, behind), max_tokens=10**6) for _ in range(count)]
                found += [timed_passes(head, texts, number, turns, random) for number in several]
                del texts
        prompts, routing = [], list[list[list[int]]]()
        for _ in range(2):
            recorder = record(head)
            started = time.perf_counter()
            start(head, tokens_of(random, head, prefill_tokens), max_tokens=1)
            prompts.append(time.perf_counter() - started)
            routing = np.concatenate(recorder.passes()).tolist()
        peak, private = zip(*(memory_of(process) for process in processes()), strict=True)
    return LayoutRun(
        num_workers=num_workers,
        threads=torch.get_num_threads(),
        first_token_s=first_token_s,
        prefill_tokens=prefill_tokens,
        prefill_s=prompts,
        prefill_routing=routing,
        passes=found,
        peak_bytes=list(peak),
        private_bytes=list(private),
    )


def start(head: Step35Model, prompt: list[int], max_tokens: int) -> SequenceState:
    """A sequence that has read its prompt and chosen a token."""
    params = GenerationParams(max_tokens=max_tokens, ignore_eos=True)
    sequence = new_sequence(head, None, prompt, params)
    prefill(head, None, sequence, CHUNK)
    return sequence


def timed_passes(
    head: Step35Model, texts: Sequence[SequenceState], rows: int, turns: int, random: np.random.Generator
) -> Passes:
    """Decode steps that verify drafts chosen by lot, which are all rejected and rolled back.

    A text takes at most MOST_ROWS of the rows, its newest token's among them.
    """
    seconds, context = [], len(texts[0].tokens)
    going_on = texts[: -(-rows // MOST_ROWS)]
    drafts = rows // len(going_on) - 1
    recorder = record(head)
    for turn in range(1 + turns):
        for text in going_on:
            text.drafted, text.accepted = [0] * drafts, [0] * drafts
            text.drafts = list(tokens_of(random, head, drafts))
        if turn == 1:
            head.timer.reset()
        started = time.perf_counter()
        with head.timer.part("other"):
            step(head, None, going_on)
        seconds.append(time.perf_counter() - started)
    parts_s = {name: part_s / turns for name, part_s in head.timer.seconds().items()}
    routing = [chosen.tolist() for chosen in recorder.passes()[1:]]
    return Passes(rows, context, seconds[1:], parts_s, routing)


def record(head: Step35Model) -> RoutingRecorder:
    """Begin anew to note which experts are chosen."""
    config = head.config
    head.recorder = RoutingRecorder(config.moe_layers, config.moe_num_experts, config.moe_top_k)
    return head.recorder


def tokens_of(random: np.random.Generator, head: Step35Model, count: int) -> list[int]:
    return [int(token) for token in random.integers(3, head.config.vocab_size, count)]


def processes() -> Iterator[psutil.Process]:
    """This one, then the workers that it started."""
    own = psutil.Process()
    yield own
    for child in own.children(recursive=True):
        if any(WORKER in part for part in child.cmdline()):
            yield child


def memory_of(process: psutil.Process) -> tuple[int, int]:
    """Bytes: the most that were resident, and what is resident now and not a file's."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    fields = {name: value for name, _, value in (line.partition(":") for line in lines)}
    peak, private = (int(fields[name].split()[0]) * 1024 for name in ("VmHWM", "RssAnon"))
    return peak, private


def main(
    model: Annotated[Path, typer.Argument(metavar="FILE.gguf")],
    out: Annotated[Path, typer.Option(help="Where to write what was measured.")],
    workers: Annotated[int, typer.Option(min=0)] = 0,
    context: Annotated[int, typer.Option(min=0, help="Of the second set of passes; 0: none.")] = 4096,
    turns: Annotated[int, typer.Option(min=1, help="Passes of each number of rows.")] = 12,
    prefill_tokens: Annotated[int, typer.Option(min=1)] = 512,
    rows: Annotated[str, typer.Option(help="Of a pass, with commas.")] = "1,2,3,4,8",
) -> None:
    """Measure and write."""
    numbers = tuple(int(number) for number in rows.split(","))
    found = measure(model, workers, rows=numbers, context=context, turns=turns, prefill_tokens=prefill_tokens)
    found.write(out)


if __name__ == "__main__":
    typer.run(main)
