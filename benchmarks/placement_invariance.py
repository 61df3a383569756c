"""Random placements on 0, 1, 2, 3 and 7 workers: one SHA-256 of ids and hidden states for all of them.

    python -m benchmarks.placement_invariance [--model DIR] [--placements 200]

Every placement runs twice, without MTP and with three drafts a step, over real services and sockets of this
process. The hash covers the generated ids and the bits of the trunk's hidden states at every position.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import track
from torch import Tensor

from orchestrator.generate import GenerationParams, generate
from orchestrator.in_process import dispatcher_with_threads
from orchestrator.model.moe import ExpertRunner
from orchestrator.model.step35 import Step35Model
from orchestrator.tokenizer import Tokenizer
from tests.orchestrator.plain_experts import plain_model
from tests.orchestrator.random_plan import random_plan
from workers.formats.safetensors import SafetensorsCheckpoint
from workers.model_config import Step35Config

NUM_WORKERS = (0, 1, 2, 3, 7)
PROMPT = "The library is read by"


def fingerprint(
    head: Step35Model,
    experts: ExpertRunner,
    prompt: Sequence[int],
    tokens: int,
    mtp: int,
    *,
    chunk_size: int = 256,
) -> str:
    """SHA-256 of ids and hidden states, 16 digits of it."""
    model = Step35Model(head.config, head.weights, head.dtype, experts)
    rows: list[Tensor] = []
    params = GenerationParams(max_tokens=tokens, mtp=mtp, ignore_eos=True, chunk_size=chunk_size)
    result = generate(model, prompt, params, on_hidden=lambda part: rows.append(part.clone()))
    return digest(result.token_ids, torch.cat(rows)[: len(prompt) + tokens - 1])


def digest(token_ids: Sequence[int], hidden: Tensor) -> str:
    """16 digits of SHA-256 over generated ids and the trunk's hidden states."""
    return hashlib.sha256(np.array(token_ids).tobytes() + hidden.numpy().tobytes()).hexdigest()[:16]


def main(
    model: Annotated[Path, typer.Option(help="Model directory.")] = Path("models/potluck-tiny"),
    placements: Annotated[int, typer.Option(help="In all, spread over the numbers of workers.")] = 200,
    tokens: Annotated[int, typer.Option(help="Generated in each run.")] = 24,
) -> None:
    """Exit with 1 if any placement gives other bits."""
    torch.set_num_threads(1)
    config = Step35Config.load(model)
    checkpoint = SafetensorsCheckpoint.open(model)
    prompt = Tokenizer.load(model).encode(PROMPT)
    console = Console()
    different = False
    for dtype in (torch.float32, torch.bfloat16):
        head = plain_model(model, dtype)
        expected = fingerprint(head, head.experts, prompt, tokens, mtp=0)
        found: dict[int, set[str]] = {number: set() for number in NUM_WORKERS}
        for seed in track(range(placements), f"{dtype}", console=Console(stderr=True)):
            number = NUM_WORKERS[seed % len(NUM_WORKERS)]
            plan = random_plan(
                config.shape(model.name), number, seed, replicas=0.2 * (seed % 3), head_holds=seed % 2 == 0
            )
            with dispatcher_with_threads(plan, checkpoint, config, dtype) as dispatcher:
                for mtp in (0, 3):
                    found[number].add(fingerprint(head, dispatcher, prompt, tokens, mtp))
        for number, hashes in found.items():
            same = hashes == {expected}
            different |= not same
            runs = 2 * len(range(NUM_WORKERS.index(number), placements, len(NUM_WORKERS)))
            verdict = "same" if same else "DIFFERENT"
            console.print(f"{dtype} {number} workers, {runs} runs: {' '.join(sorted(hashes))} {verdict}")
    sys.exit(different)


if __name__ == "__main__":
    typer.run(main)
