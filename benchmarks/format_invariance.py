"""One SHA-256 of ids and hidden states for each weight format, however the run is cut and shared.

    python -m benchmarks.format_invariance [--forms q4_k,iq3_s] [--tokens 8]

A small random GGUF file of each format runs on every instruction set of this machine, with 1 and 2 threads,
with the prompt whole and in chunks, beside another text in the same passes, and over 0 to 3 workers with 0 to
3 MTP drafts a step. Exits with 1 if any of them gives other bits.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from torch import Tensor

from benchmarks.placement_invariance import digest, fingerprint
from benchmarks.random_blocks import TYPES
from benchmarks.random_gguf import SMALL, FileTypes, write_random_gguf
from orchestrator.generate import GenerationParams, SequenceState, prefill, step
from orchestrator.in_process import dispatcher_with_threads
from orchestrator.model.step35 import Step35Model
from orchestrator.session import load_local
from placement.weight_format import FORMATS
from tests.orchestrator.random_plan import random_plan
from workers.formats.open_model import open_model
from workers.kernels import instruction_set, use_instruction_set

INSTRUCTION_SETS = ("baseline", "avx2", "avx512", "avx512vnni", "neon")
MIXED = "mixed"
PROMPT = [int(token) for token in np.random.default_rng(3).integers(3, SMALL.vocab, 40)]
"""Longer than the sliding window."""


def hashes(path: Path, tokens: int) -> Iterator[tuple[str, str]]:
    """What was varied, and the hash. The first is what the others should be."""
    head = load_local(path, torch.float32)
    best = instruction_set()
    for name in INSTRUCTION_SETS:
        if use_instruction_set(name):
            for threads in (1, 2):
                torch.set_num_threads(threads)
                yield f"{name}, {threads} threads", fingerprint(head, head.experts, PROMPT, tokens, mtp=0)
    use_instruction_set(best)
    for chunk in (1, 7):
        found = fingerprint(head, head.experts, PROMPT, tokens, mtp=0, chunk_size=chunk)
        yield f"prompt in chunks of {chunk}", found
    yield "beside another text", beside_another(head, tokens)
    config, checkpoint = open_model(path)
    for number in range(4):
        plan = random_plan(config.shape(path.stem), number, seed=number, replicas=0.2)
        with dispatcher_with_threads(plan, checkpoint, config, torch.float32) as dispatcher:
            for mtp in range(4):
                found = fingerprint(head, dispatcher, PROMPT, tokens, mtp)
                yield f"{number} workers, {mtp} drafts", found


def beside_another(head: Step35Model, tokens: int) -> str:
    """The first of two texts that decode in the same passes."""
    params = GenerationParams(max_tokens=tokens, ignore_eos=True)
    rows: list[Tensor] = []
    texts = [
        SequenceState(head, None, PROMPT, params, lambda part: rows.append(part.clone())),
        SequenceState(head, None, PROMPT[::-1], params),
    ]
    for text in texts:
        prefill(head, None, text)
    while texts[0].finish_reason is None:
        step(head, None, texts)
    return digest(texts[0].generated, torch.cat(rows)[: len(PROMPT) + tokens - 1])


def types_of(form: str) -> FileTypes:
    """All of one form, or types that differ within an expert and between layers."""
    if form == MIXED:
        experts = (("q4_k", "q4_k", "q5_k"), ("iq3_s", "iq3_s", "iq4_xs"))
        return FileTypes(experts, head="q8_0", output="q6_k")
    return FileTypes.all_in(form)


def differences(found: Sequence[tuple[str, str]]) -> list[str]:
    """What gave other bits than the first."""
    return [what for what, value in found if value != found[0][1]]


def main(
    forms: Annotated[str, typer.Option(help="With commas; all when left out.")] = "",
    tokens: Annotated[int, typer.Option(min=1, help="Generated in each run.")] = 8,
) -> None:
    """Print a row a format."""
    console = Console()
    names = forms.split(",") if forms else [*(form for form in TYPES if form in FORMATS), MIXED]
    failed = False
    with tempfile.TemporaryDirectory() as scratch:
        for form in names:
            path = write_random_gguf(Path(scratch) / f"{form}.gguf", SMALL, types_of(form))
            found = list(hashes(path, tokens))
            other = differences(found)
            failed |= bool(other)
            verdict = f"DIFFERENT: {'; '.join(other)}" if other else "same"
            console.print(f"{form:<9} {found[0][1]}  {len(found)} runs  {verdict}")
            path.unlink()
    sys.exit(failed)


if __name__ == "__main__":
    typer.run(main)
