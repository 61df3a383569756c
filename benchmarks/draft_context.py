"""How often drafts hold where the MTP layers have only the last rows of a text.

    python -m benchmarks.draft_context [--model DIR] [--pieces 12] [--tokens 224]

A server whose drafts do not pay keeps no rows for them (docs/scheduler.md). When it keeps them again, the MTP
layers have the text from there on. This says after how many rows that makes no difference any more.
Pieces of texts are continued without drafts. Behind every fifth token three drafts are made, each time with
MTP layers that have so many rows and nothing else, and held against the tokens that came.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor

from benchmarks.draft_depth import pieces_of
from orchestrator.model.attention import SequenceSlice
from orchestrator.model.mtp import DraftRequest, MtpDrafter
from orchestrator.model.step35 import Step35Model
from orchestrator.sampling import Choice, Sampler
from orchestrator.sampling_params import SamplingParams
from orchestrator.session import load_local
from orchestrator.tokenizer import Tokenizer
from workers.formats.open_model import open_model

ROWS = (1, 4, 8, 16, 32, 64, 128, None)
"""None for all."""
MOST_DRAFTS = 3
EVERY_TOKENS = 5
SHORTEST = 128
"""Tokens before the first drafts, at least."""


def continued(model: Step35Model, prompt: Sequence[int], tokens: int, seed: int) -> tuple[list[int], Tensor]:
    """A text that goes on for so many tokens, and the trunk's rows, float32 [n, hidden]."""
    text, new, found = list(prompt), list(prompt), []
    sampler, cache = Sampler(_params(seed), prompt), model.new_cache()
    while True:
        rows = model.forward(torch.tensor(new), [SequenceSlice(cache, len(new))])
        found.append(rows.clone())
        if len(text) >= len(prompt) + tokens:
            cache.close()
            return text, torch.cat(found)
        new = model.logits_to_choose_from(rows[-1:]).choose([sampler.choice(len(text))])
        sampler.note(new)
        text += new


def held(drafter: MtpDrafter, text: Sequence[int], rows: Tensor, stop: int, most_rows: int, seed: int) -> int:
    """How many drafts hold behind `stop` rows, the last `most_rows` of which the MTP layers have."""
    state, begin = drafter.new_state(), max(0, stop - most_rows)
    state.begin_at(begin)
    known = text[: stop + 1]
    choice = partial(_choice, Sampler(_params(seed), known), len(known))
    request = DraftRequest(state, rows[begin:stop].contiguous(), known, drafter.num_layers, choice)
    drafts = drafter.draft([request])[0]
    state.close()
    came = text[stop + 1 : stop + 1 + len(drafts)]
    return [*(draft == token for draft, token in zip(drafts, came, strict=True)), False].index(False)


def _choice(sampler: Sampler, position: int, drafts: list[int]) -> Choice:
    return sampler.choice(position + len(drafts), drafts)


def _params(seed: int) -> SamplingParams:
    return SamplingParams(temperature=0.7, seed=seed)


def shares(drafter: MtpDrafter, texts: Sequence[tuple[list[int], Tensor]], most_rows: int | None) -> str:
    """Of drafts by place, those that held with all before them; and the first one's standard error."""
    counts = [
        held(drafter, text, rows, stop, most_rows or len(rows), seed)
        for seed, (text, rows) in enumerate(texts)
        for stop in range(SHORTEST, len(text) - drafter.num_layers, EVERY_TOKENS)
    ]
    found = [float(np.mean(np.array(counts) > place)) for place in range(drafter.num_layers)]
    error = (found[0] * (1 - found[0]) / len(counts)) ** 0.5
    return ", ".join(f"{share:.3f}" for share in found) + f" (± {error:.3f})"


@torch.inference_mode()
def main(
    model: Annotated[Path, typer.Option(help="Directory with heldout/*.txt.")] = Path("models/potluck-tiny"),
    pieces: Annotated[int, typer.Option(min=1, help="Of each text.")] = 12,
    tokens: Annotated[int, typer.Option(min=SHORTEST, help="That each piece is continued by.")] = 224,
) -> None:
    """Print a row for each number of rows, and a column for each text."""
    head, tokenizer = load_local(open_model(model), torch.bfloat16), Tokenizer.load(model)
    drafter = MtpDrafter(head, MOST_DRAFTS)
    sources = sorted((model / "heldout").glob("*.txt"))
    texts = []
    for source in sources:
        prompts = pieces_of(tokenizer.encode_prompt(source.read_text(encoding="utf-8")), pieces, tokens)
        texts.append([continued(head, prompt, tokens, seed) for seed, (prompt, _) in enumerate(prompts)])
    print("| rows |", " | ".join(source.stem for source in sources), "|")
    print("|---" * (1 + len(sources)) + "|")
    for most_rows in ROWS:
        cells = [shares(drafter, of, most_rows) for of in texts]
        print(f"| {most_rows or 'all'} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    typer.run(main)
