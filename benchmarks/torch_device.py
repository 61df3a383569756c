"""Half of the experts on another torch device: are the tokens the CPU's, how far are the numbers, how fast.

    python -m benchmarks.torch_device --device cuda:0 [--model DIR] [--tokens 64]

Experts on another device are computed by torch, not by our kernels, so bits may differ from the CPU's.
Workers are threads of this process, over real services and sockets.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from torch import Tensor

from orchestrator.generate import GenerationParams, generate
from orchestrator.in_process import dispatcher_with_threads
from orchestrator.model.step35 import Step35Model
from orchestrator.model.weights import load_head_weights
from orchestrator.tokenizer import Tokenizer
from placement.plan import Plan
from tests.orchestrator.random_plan import random_plan
from workers.formats.safetensors import SafetensorsCheckpoint
from workers.model_config import Step35Config

PROMPT = "The library is read by"


@dataclass(frozen=True, slots=True)
class Run:
    """Generated ids, the trunk's hidden states [positions, hidden], and tokens a second."""

    token_ids: tuple[int, ...]
    hidden_states: Tensor
    tokens_per_s: float


def run(model_dir: Path, plan: Plan, dtype: torch.dtype, num_tokens: int) -> Run:
    """Greedy text of a plan; the first, shorter run warms up."""
    config, checkpoint = Step35Config.load(model_dir), SafetensorsCheckpoint.open(model_dir)
    prompt = Tokenizer.load(model_dir).encode_prompt(PROMPT)
    weights = load_head_weights(checkpoint, config, dtype)
    with dispatcher_with_threads(plan, checkpoint, config, dtype) as dispatcher:
        head = Step35Model(config, weights, dtype, dispatcher)
        generate(head, prompt, GenerationParams(max_tokens=4, ignore_eos=True))
        rows: list[Tensor] = []
        start = time.perf_counter()
        result = generate(
            head,
            prompt,
            GenerationParams(max_tokens=num_tokens, ignore_eos=True),
            on_hidden=lambda part: rows.append(part.clone()),
        )
        seconds = time.perf_counter() - start
    return Run(tuple(result.token_ids), torch.cat(rows), num_tokens / seconds)


def main(
    device: Annotated[str, typer.Option(help="Torch device such as cuda:0 or mps.")] = "cuda:0",
    model: Annotated[Path, typer.Option(help="Model directory.")] = Path("models/potluck-tiny"),
    tokens: Annotated[int, typer.Option(help="Generated in each run.")] = 64,
) -> None:
    """One line for each dtype."""
    shape = Step35Config.load(model).shape(model.name)
    console = Console()
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else device
    console.print(f"worker-0 on {name}, the head and worker-1 on the CPU; torch {torch.__version__}")
    for dtype in (torch.float32, torch.bfloat16):
        there = random_plan(shape, 2, seed=0, replicas=0.0, head_holds=False)
        first, *others = there.tiers
        plan = replace(there, tiers=(replace(first, device=device), *others))
        cpu, other = (run(model, made, dtype, tokens) for made in (there, plan))
        pairs = enumerate(zip(cpu.token_ids, other.token_ids, strict=True))
        same = next((place for place, (one, two) in pairs if one != two), tokens)
        # Behind the first other token the texts differ, and so do all numbers.
        rows = min(len(cpu.hidden_states), len(cpu.hidden_states) - tokens + 1 + same)
        difference = (cpu.hidden_states[:rows] - other.hidden_states[:rows]).abs()
        scale = cpu.hidden_states[:rows].abs().max()
        console.print(
            f"{dtype}: first {same} of {tokens} tokens the CPU's, "
            f"{(difference == 0).float().mean():.1%} of hidden values with the same bits, largest difference "
            f"{difference.max() / scale:.1e} of the largest value; {other.tokens_per_s:.0f} tokens/s, on the "
            f"CPU alone {cpu.tokens_per_s:.0f}"
        )


if __name__ == "__main__":
    typer.run(main)
