"""Decode tokens/s with 0, 1 and 3 workers, MTP off and on, in one run.

    python -m benchmarks.decode [--model DIR] [--rounds 5]

Workers are Ray actors of this machine. The rounds of all layouts are interleaved, so that what else the
machine does falls on all of them alike; figures are medians, the last column is against the first row.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from orchestrator.cli.even_plan import even_plan
from orchestrator.generate import GenerationParams
from orchestrator.session import Session, open_session
from orchestrator.tokenizer import Tokenizer
from workers.formats.open_model import open_model
from workers.model_config import Step35Config

NUM_WORKERS = (0, 1, 3)
DRAFTS = (0, 3)


def main(
    model: Annotated[Path, typer.Option(help="Model directory with prompts.json.")] = Path(
        "models/potluck-tiny"
    ),
    rounds: Annotated[int, typer.Option(help="Of each layout and each prompt.")] = 5,
    tokens: Annotated[int, typer.Option(help="Generated in each round.")] = 64,
) -> None:
    """Print one row a layout."""
    shape = Step35Config.load(model).shape(model.resolve().name)
    tokenizer = Tokenizer.load(model)
    prompts = [
        tokenizer.encode_prompt(text) for text in json.loads((model / "prompts.json").read_text()).values()
    ]
    speeds: dict[tuple[int, int], list[float]] = {}
    accepted: dict[tuple[int, int], list[float]] = {}
    with ExitStack() as stack:
        sessions: dict[int, Session] = {
            number: stack.enter_context(open_session(open_model(model), even_plan(shape, number, "bfloat16")))
            for number in NUM_WORKERS
        }
        for turn in range(rounds + 1):
            for prompt in prompts:
                for number, session in sessions.items():
                    for drafts in DRAFTS:
                        params = GenerationParams(max_tokens=tokens, ignore_eos=True, mtp=drafts)
                        result = session.generate(prompt, params)
                        if turn:  # the first warms up
                            speeds.setdefault((number, drafts), []).append(result.tokens_per_s)
                            accepted.setdefault((number, drafts), []).append(result.accepted_drafts_per_step)
    table = Table("workers", "drafts a step", "tokens/s", "accepted a step", "relative")
    first = median(speeds[NUM_WORKERS[0], DRAFTS[0]])
    for (number, drafts), values in speeds.items():
        speed = median(values)
        table.add_row(
            str(number),
            str(drafts),
            f"{speed:.1f}",
            f"{median(accepted[number, drafts]):.2f}",
            f"{speed / first:.2f}",
        )
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
