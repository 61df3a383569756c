"""One SHA-256 of ids and hidden states for each form of weights, however a run is cut and shared.

    python -m benchmarks.invariance [--models q4_k,potluck-tiny] [--tokens 8] [--placements 200]

The models: a small random one in each form, one whose forms differ within an expert and between layers, and
the shipped one. Each runs in float32 and in bfloat16: on every instruction set of this machine, with 1 and 2
threads; with its prompt whole and in chunks; beside another text in the same passes; and by random placements
on 0, 1, 2, 3 and 7 workers, each with 0 to 3 drafts a step, over services and sockets of this process.

The hash covers the generated ids and the bits of the trunk's hidden states at every position. Exits with 1 if
any run of a model in one dtype gives another one.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor

from benchmarks.random_gguf import SMALL, FileTypes, write_random_gguf
from orchestrator.generate import GenerationParams, generate, new_sequence, prefill, step
from orchestrator.in_process import dispatcher_with_threads
from orchestrator.model.moe import ExpertRunner
from orchestrator.model.step35 import Step35Model
from orchestrator.session import load_local
from orchestrator.tokenizer import Tokenizer
from placement.weight_format import FORMATS, FP8_E4M3
from tests.everywhere import INSTRUCTION_SETS
from tests.orchestrator.random_plan import random_plan
from tests.tiny_checkpoint import write_random_checkpoint
from tests.workers.formats.fp8_files import experts_in_fp8
from workers.formats.open_model import open_model
from workers.kernels import instruction_set, use_instruction_set

NUM_WORKERS = (0, 1, 2, 3, 7)
DRAFTS = (0, 1, 2, 3)
CHUNKS = (1, 7)
MIXED = "mixed"
MIXED_TYPES = FileTypes((("q4_k", "q4_k", "q5_k"), ("iq3_s", "iq3_s", "iq4_xs")), "q8_0", "q6_k")
SHIPPED = Path("models/potluck-tiny")
TEXT = "The library is read by"
NAMES = (*FORMATS, MIXED, SHIPPED.name)


@dataclass(frozen=True, slots=True)
class Model:
    """What is run: the prompt's token ids, and how many placements, spread over NUM_WORKERS."""

    path: Path
    prompt: tuple[int, ...]
    placements: int

    @classmethod
    def called(cls, name: str, folder: Path, placements: int) -> Model:
        """The shipped model with so many placements, or a random one, written into `folder`, with a few."""
        if name == SHIPPED.name:
            return cls(SHIPPED, tuple(Tokenizer.load(SHIPPED).encode(TEXT)), placements)
        # Longer than the sliding window.
        prompt = np.random.default_rng(3).integers(3, SMALL.vocab, SMALL.window + 8)
        return cls(random_model(name, folder), tuple(prompt.tolist()), len(NUM_WORKERS))


def random_model(name: str, folder: Path) -> Path:
    """In one form, or in forms that differ within an expert and between layers."""
    if name == FP8_E4M3.name:
        # 1.5 squares of scales a row, so that some are cut.
        return experts_in_fp8(
            write_random_checkpoint(
                folder / name,
                seed=3,
                vocab_size=SMALL.vocab,
                sliding_window=SMALL.window,
                hidden_size=192,
                moe_intermediate_size=160,
                dtype=torch.bfloat16,
            )
        )
    types = MIXED_TYPES if name == MIXED else FileTypes.all_in(name)
    return write_random_gguf(folder / f"{name}.gguf", SMALL, types)


def hashes(model: Model, dtype: torch.dtype, tokens: int) -> Iterator[tuple[str, str]]:
    """What was varied, and the hash. The first is what the others should be."""
    head = load_local(open_model(model.path), dtype)
    threads, best = torch.get_num_threads(), instruction_set()
    try:
        for name in INSTRUCTION_SETS:
            if use_instruction_set(name):
                for number in (1, 2):
                    torch.set_num_threads(number)
                    yield f"{name}, {number} threads", fingerprint(head, head.experts, model.prompt, tokens)
        use_instruction_set(best)
        torch.set_num_threads(1)
        for size in CHUNKS:
            found = fingerprint(head, head.experts, model.prompt, tokens, chunk_size=size)
            yield f"prompt in chunks of {size}", found
        yield "beside another text", beside_another(head, model.prompt, tokens)
        yield from placed(head, model, tokens)
    finally:
        use_instruction_set(best)
        torch.set_num_threads(threads)


def placed(head: Step35Model, model: Model, tokens: int) -> Iterator[tuple[str, str]]:
    """By random placements: with the head's own experts and without, with up to 40% replicas."""
    config, checkpoint = open_model(model.path)
    for seed in range(model.placements):
        number = NUM_WORKERS[seed % len(NUM_WORKERS)]
        plan = random_plan(
            config.shape(model.path.stem), number, seed, replicas=0.2 * (seed % 3), head_holds=seed % 2 == 0
        )
        with dispatcher_with_threads(plan, checkpoint, config, head.dtype) as dispatcher:
            for drafts in DRAFTS:
                found = fingerprint(head, dispatcher, model.prompt, tokens, drafts=drafts)
                yield f"placement {seed} on {number} workers, {drafts} drafts", found


def fingerprint(
    head: Step35Model,
    experts: ExpertRunner,
    prompt: Sequence[int],
    tokens: int,
    *,
    drafts: int = 0,
    chunk_size: int = 256,
) -> str:
    """Of a run by itself."""
    model = Step35Model(head.config, head.weights, head.dtype, experts)
    rows: list[Tensor] = []
    params = GenerationParams(max_tokens=tokens, mtp=drafts, ignore_eos=True, chunk_size=chunk_size)
    result = generate(model, prompt, params, on_hidden=lambda part: rows.append(part.clone()))
    return digest(result.token_ids, torch.cat(rows)[: len(prompt) + tokens - 1])


def beside_another(head: Step35Model, prompt: Sequence[int], tokens: int) -> str:
    """Of the first of two texts that decode in the same passes."""
    params = GenerationParams(max_tokens=tokens, ignore_eos=True)
    rows: list[Tensor] = []
    texts = [
        new_sequence(head, None, prompt, params, lambda part: rows.append(part.clone())),
        new_sequence(head, None, prompt[::-1], params),
    ]
    for text in texts:
        prefill(head, None, text, params.chunk_size)
    while texts[0].finish_reason is None:
        step(head, None, texts)
    return digest(texts[0].generated, torch.cat(rows)[: len(prompt) + tokens - 1])


def digest(token_ids: Sequence[int], hidden: Tensor) -> str:
    """16 digits of SHA-256 over generated ids and the trunk's hidden states."""
    return hashlib.sha256(np.array(token_ids).tobytes() + hidden.numpy().tobytes()).hexdigest()[:16]


def differences(found: Sequence[tuple[str, str]]) -> list[str]:
    """What gave other bits than the first."""
    return [what for what, value in found if value != found[0][1]]


def main(
    models: Annotated[str, typer.Option(help=f"With commas, of {', '.join(NAMES)}; all if left out.")] = "",
    tokens: Annotated[int, typer.Option(min=1, help="Generated in each run.")] = 8,
    placements: Annotated[int, typer.Option(min=1, help="Of the shipped model; of others five.")] = 200,
) -> None:
    """Print a row for each model and dtype."""
    names = models.split(",") if models else NAMES
    unknown = sorted(set(names) - set(NAMES))
    if unknown:
        raise typer.BadParameter(f"--models {', '.join(unknown)}: expected some of {', '.join(NAMES)}")
    failed = False
    for name in names:
        with tempfile.TemporaryDirectory() as scratch:
            model = Model.called(name, Path(scratch), placements)
            for dtype in (torch.float32, torch.bfloat16):
                found = list(hashes(model, dtype, tokens))
                other = differences(found)
                failed |= bool(other)
                verdict = f"DIFFERENT: {'; '.join(other)}" if other else "same"
                kind = str(dtype).removeprefix("torch.")
                print(f"{name:<12} {kind:<8} {found[0][1]}  {len(found):>3} runs  {verdict}", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    typer.run(main)
