"""A box with two devices as one worker of two tiers or as two workers: processes, messages, speed.

    python -m benchmarks.box [--model DIR] [--rounds 5] [--tokens 64]

All layouts hold the same experts on the same two devices, RAM of this machine with one thread each. Only who
owns the devices differs. Rounds are interleaved, so that what else the machine does falls on all layouts
alike; tokens/s are medians.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from orchestrator.cli.even_plan import even_plan
from orchestrator.generate import GenerationParams
from orchestrator.session import Session, open_session
from orchestrator.tokenizer import Tokenizer
from placement.model_shape import ModelShape
from placement.plan import LOCAL_WORKER, Plan
from workers.formats.open_model import open_model
from workers.model_config import Step35Config

PROMPT = "The library is read by"


@dataclass(slots=True)
class Layout:
    """One way to run the two devices; `tokens_per_s` of each round, `messages` and `layers` of all."""

    session: Session
    tokens_per_s: list[float] = field(default_factory=list)
    messages: int = 0
    layers: int = 0

    @property
    def processes(self) -> int:
        return len(self.session.plan.asked_workers)


def plans(shape: ModelShape) -> dict[str, Plan]:
    """Two devices that hold half of the experts each, under three owners."""
    apart = even_plan(shape, 2, "float32")
    first, second = apart.tiers
    at_home = (
        replace(first, name=LOCAL_WORKER, worker=LOCAL_WORKER),
        replace(second, worker=LOCAL_WORKER),
    )
    return {
        "two workers": apart,
        "one worker, two tiers": replace(
            apart, tiers=tuple(replace(tier, worker="box") for tier in apart.tiers)
        ),
        "the head, two tiers": replace(apart, tiers=at_home),
    }


def main(
    model: Annotated[Path, typer.Option(help="Model directory.")] = Path("models/potluck-tiny"),
    rounds: Annotated[int, typer.Option(help="Of each layout.")] = 5,
    tokens: Annotated[int, typer.Option(help="Generated in each round.")] = 64,
) -> None:
    """Print one row a layout."""
    torch.set_num_threads(1)
    shape = Step35Config.load(model).shape(model.resolve().name)
    prompt = Tokenizer.load(model).encode_prompt(PROMPT)
    params = GenerationParams(max_tokens=tokens, ignore_eos=True)
    with ExitStack() as stack:
        layouts = {
            name: Layout(stack.enter_context(open_session(open_model(model), plan)))
            for name, plan in plans(shape).items()
        }
        for turn in range(rounds + 1):
            for layout in layouts.values():
                before = layout.session.dispatcher.usage.copy()
                result = layout.session.generate(prompt, params)
                if turn:  # the first warms up
                    layout.tokens_per_s.append(result.tokens_per_s)
                    layout.messages += layout.session.dispatcher.usage.since(before).messages
                    layout.layers += (1 + result.steps) * shape.num_moe_layers
    first = median(layouts["two workers"].tokens_per_s)
    table = Table("two devices as", "worker processes", "messages a layer", "tokens/s", "relative")
    for name, layout in layouts.items():
        speed = median(layout.tokens_per_s)
        messages = f"{layout.messages / layout.layers:.2f}"
        table.add_row(name, str(layout.processes), messages, f"{speed:.1f}", f"{speed / first:.2f}")
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
