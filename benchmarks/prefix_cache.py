"""What keeping prefixes saves in a session, and what it takes.

    python -m benchmarks.prefix_cache [--model models/potluck-tiny] [--turns 10] [--rounds 3]

A turn's prompt is all that was said before and a message, cut from held-out text. The model computes it with
and without a prefix cache, in turn. In the first session replies come back whole; in the second their first
half does not, as reasoning that a template drops. Times are the least of all rounds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from orchestrator.generate import GenerationParams, GenerationResult, generate
from orchestrator.model.kv_pool import KvPool
from orchestrator.model.step35 import Step35Model
from orchestrator.prefix.cache import PrefixCache
from orchestrator.session import load_local
from orchestrator.tokenizer import Tokenizer
from placement.kv_size import HELD_BACK, PAGE_POSITIONS, KvForm, KvShape, pages_of
from placement.model_shape import STEP_3_5_FLASH, ModelShape
from placement.units import size
from workers.formats.open_model import open_model

MESSAGE_TOKENS = 96
REPLY_TOKENS = 64
MTP = 3


@dataclass(slots=True)
class Turn:
    """Tokens of a turn's prompt, those that were computed with a cache, and seconds to the first token."""

    prompt_tokens: int
    computed: int
    plain_s: float
    kept_s: float


def session(head: Step35Model, messages: Sequence[Sequence[int]], left_out: int) -> list[Turn]:
    """Play a session.

    Args:
        left_out: tokens of each reply that do not come back.
    """
    head.kv_pool = KvPool(head.kv_pool.budget_bytes)
    prefix = PrefixCache.of(head)
    params = GenerationParams(REPLY_TOKENS, ignore_eos=True, mtp=MTP)
    turns: list[Turn] = []
    tokens: list[int] = []
    for message in messages:
        tokens += message
        saved = prefix.stats.saved_tokens
        plain = generate(head, tokens, params)
        kept = generate(head, tokens, params, prefix=prefix, ends=(len(tokens),))
        check_same(plain, kept)
        computed = len(tokens) - (prefix.stats.saved_tokens - saved)
        turns.append(Turn(len(tokens), computed, plain.prefill_s, kept.prefill_s))
        tokens += kept.token_ids[left_out:]
    return turns


def check_same(plain: GenerationResult, kept: GenerationResult) -> None:
    """Raise RuntimeError where what was kept changed anything."""
    if (plain.token_ids, plain.accepted_by_position) != (kept.token_ids, kept.accepted_by_position):
        raise RuntimeError("a kept prefix changed tokens, or which drafts were accepted")


def fastest(rounds: Sequence[Sequence[Turn]]) -> list[Turn]:
    """Turn by turn the least of each time."""
    return [
        Turn(
            turns[0].prompt_tokens,
            turns[0].computed,
            min(turn.plain_s for turn in turns),
            min(turn.kept_s for turn in turns),
        )
        for turns in zip(*rounds, strict=True)
    ]


def table_of(title: str, turns: Sequence[Turn]) -> Table:
    """Of a session."""
    table = Table("turn", "prompt", "computed without", "with", "first token without", "with", title=title)
    for number, turn in enumerate(turns, start=1):
        table.add_row(
            str(number),
            str(turn.prompt_tokens),
            str(turn.prompt_tokens),
            str(turn.computed),
            f"{1000 * turn.plain_s:.0f} ms",
            f"{1000 * turn.kept_s:.0f} ms",
        )
    prompts, computed = sum(turn.prompt_tokens for turn in turns), sum(turn.computed for turn in turns)
    times = (sum(turn.plain_s for turn in turns), sum(turn.kept_s for turn in turns))
    table.add_section()
    table.add_row(
        "all", str(prompts), str(prompts), str(computed), *(f"{1000 * seconds:.0f} ms" for seconds in times)
    )
    return table


def memory_of(shape: ModelShape, num_mtp: int) -> Table:
    """What is kept of a model's texts, by how keys and values are kept."""
    table = Table(
        "keys and values", "1,000 tokens", "a boundary", "of it copied", title=f"Kept of {shape.name}"
    )
    layers = shape.attention[: shape.num_hidden_layers + num_mtp]
    for form in KvForm:
        full = sum(KvShape.of(layer, form).page_bytes for layer in layers if not layer.is_sliding)
        sliding = boundary = 0.0
        for layer in layers:
            if layer.is_sliding:
                page_bytes = KvShape.of(layer, form).page_bytes
                sliding += page_bytes
                boundary += page_bytes * mean_pages(layer.window)
        # The page that is not full yet is a page of its own in every layer, but where a boundary ends one.
        copied = full + sliding
        table.add_row(
            form.value, size(1000 * full / PAGE_POSITIONS), size(math.ceil(boundary + full)), size(copied)
        )
    return table


def mean_pages(window: int) -> float:
    """Pages that a sliding layer holds at a boundary, over all places in a page."""
    lengths = range(64 * PAGE_POSITIONS, 65 * PAGE_POSITIONS)
    held = (pages_of(length) - (length - HELD_BACK - window + 1) // PAGE_POSITIONS for length in lengths)
    return sum(held) / PAGE_POSITIONS


def main(
    model: Annotated[Path, typer.Option(help="Model directory with heldout/technical.txt.")] = Path(
        "models/potluck-tiny"
    ),
    turns: Annotated[int, typer.Option(min=2, help="Of a session.")] = 10,
    rounds: Annotated[int, typer.Option(min=1, help="Sessions of each kind.")] = 3,
) -> None:
    """Print the tables."""
    head = load_local(open_model(model), torch.bfloat16)
    text = (model / "heldout" / "technical.txt").read_text(encoding="utf-8")
    token_ids = Tokenizer.load(model).encode_prompt(text)
    messages = [token_ids[turn * MESSAGE_TOKENS : (turn + 1) * MESSAGE_TOKENS] for turn in range(turns)]
    console = Console(width=110)
    session(head, messages[:2], 0)
    for title, left_out in (("Replies come back", 0), ("Half of each reply does not", REPLY_TOKENS // 2)):
        console.print(table_of(title, fastest([session(head, messages, left_out) for _ in range(rounds)])))
    console.print(memory_of(STEP_3_5_FLASH, MTP))


if __name__ == "__main__":
    typer.run(main)
