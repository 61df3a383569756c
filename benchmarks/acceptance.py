"""How many drafts hold: as chosen with shared noise, as expected of that, and by rejection sampling.

    python -m benchmarks.acceptance [--model DIR] [--contexts 40] [--tokens 96]

Text is generated behind pieces of held-out text with three drafts a step. A draft counts where those before
it held. Both rows of logits are kept for it: the trunk's gives the distribution p, the MTP layer's q. From
them follow, without luck, what shared Gumbel noise accepts, what rejection sampling would accept, and what
weighted MinHash would (docs/notes.md, 'Shared noise').
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor

from orchestrator.generate import GenerationParams, new_sequence, prefill
from orchestrator.model.attention import SequenceSlice
from orchestrator.model.mtp import MtpDrafter
from orchestrator.model.step35 import Step35Model
from orchestrator.sampling import Logits
from orchestrator.sampling_params import GREEDY, SamplingParams
from orchestrator.session import load_local
from orchestrator.tokenizer import Tokenizer
from workers.formats.open_model import open_model

DRAFTS = 3
CONTEXT_TOKENS = 64
SETTINGS = (
    GREEDY,
    SamplingParams(temperature=0.7),
    SamplingParams(temperature=0.7, top_p=0.95),
    SamplingParams(temperature=1.0),
    SamplingParams(temperature=1.0, top_p=0.95),
)

Probabilities = NDArray[np.float64]
"""Of each token, [vocab]."""


def probabilities(logits: NDArray[np.float32], how: SamplingParams) -> Probabilities:
    """What a row's token is drawn from: docs/arithmetic.md, 'Choosing a token', temperature and top_p."""
    if not how.temperature:
        weights = np.zeros(len(logits))
        weights[logits.argmax()] = 1.0
        return weights
    weights = np.exp((logits.astype(np.float64) - logits.max()) / how.temperature)
    if how.top_p < 1:
        order = np.argsort(-logits, kind="stable")
        enough = int(np.searchsorted(weights[order].cumsum(), how.top_p * weights.sum()))
        weights[logits < logits[order[min(enough, len(order) - 1)]]] = 0.0
    found: Probabilities = weights / weights.sum()
    return found


def shared_noise(p: Probabilities, q: Probabilities) -> float:
    """The chance that both choose the same token with the same Gumbel noise.

    That is the sum over v of 1 / sum over w of max(p_w / p_v, q_w / q_v). The larger one is p's where
    p_w / q_w is at least p_v / q_v. So, with tokens sorted by p / q, running sums give all inner sums.
    """
    common = (p > 0) & (q > 0)
    if not common.any():
        return 0.0
    own, other = p[common], q[common]
    order = np.argsort(own / other, kind="stable")
    own, other = own[order], other[order]
    # Tokens that only p has stand behind all common ones, those that only q has before them.
    from_here = p[~common].sum() + own[::-1].cumsum()[::-1]
    before = q[~common].sum() + np.concatenate([[0.0], other.cumsum()[:-1]])
    return float((1 / (from_here / own + before / other)).sum())


def overlap(p: Probabilities, q: Probabilities) -> float:
    """1 minus the total variation distance: what rejection sampling accepts."""
    return float(np.minimum(p, q).sum())


@dataclass(slots=True)
class Tally:
    """Sums over drafts of one position. `same_top`: of both rows the largest logit is the same token's."""

    tried: int = 0
    held: int = 0
    shared_noise: float = 0.0
    rejection: float = 0.0
    min_hash: float = 0.0
    same_top: int = 0

    def add(
        self, trunk: NDArray[np.float32], draft: NDArray[np.float32], how: SamplingParams, *, held: bool
    ) -> None:
        p, q = probabilities(trunk, how), probabilities(draft, how)
        common = overlap(p, q)
        self.tried += 1
        self.held += held
        self.shared_noise += shared_noise(p, q)
        self.rejection += common
        self.min_hash += common / (2 - common)
        self.same_top += int(trunk.argmax() == draft.argmax())

    def shares(self) -> tuple[float, ...]:
        """Of the drafts that were tried: held, and as expected of each coupling, and the same top."""
        sums = (self.held, self.shared_noise, self.rejection, self.min_hash, self.same_top)
        return tuple(total / max(1, self.tried) for total in sums)


class Hearing(MtpDrafter):
    """A drafter that keeps the rows its newest drafts were chosen from."""

    def __init__(self, model: Step35Model) -> None:
        super().__init__(model, DRAFTS)
        self.rows: list[NDArray[np.float32]] = []

    def _logits(self, k: int, rows: Tensor) -> Logits:
        logits = super()._logits(k, rows)
        self.rows.append(logits.row(0))
        return logits


def listen(
    model: Step35Model, prompt: Sequence[int], how: SamplingParams, max_tokens: int, tallies: list[Tally]
) -> None:
    """Generate behind a prompt, and add what became of each draft to the tally of its position."""
    drafter = Hearing(model)
    params = GenerationParams(max_tokens, how, ignore_eos=True, mtp=DRAFTS)
    sequence = new_sequence(model, drafter, prompt, params)
    prefill(model, drafter, sequence, len(prompt))
    while sequence.finish_reason is None:
        drafter.rows.clear()
        (sequence.drafts,) = drafter.draft([sequence.draft_request(sequence.most_drafts(DRAFTS))])
        token_ids = torch.tensor([sequence.tokens[-1], *sequence.drafts])
        hidden_states = model.forward(token_ids, [SequenceSlice(sequence.cache, len(token_ids))])
        logits = model.logits_to_choose_from(hidden_states)
        chosen = logits.choose(sequence.choices())
        for place, (draft, own) in enumerate(zip(sequence.drafts, drafter.rows, strict=True)):
            held = chosen[place] == draft
            tallies[place].add(logits.row(place), own, how, held=held)
            if not held:
                break
        kept, _ = sequence.verified(chosen)
        sequence.take(hidden_states[: len(kept)])
    sequence.close()


def tokens_a_step(shares: Sequence[float]) -> float:
    """With drafts that hold with these chances, each if those before it do."""
    return 1 + sum(math.prod(shares[: place + 1]) for place in range(len(shares)))


def told(how: SamplingParams) -> str:
    """A setting's name in the table."""
    if not how.temperature:
        return "greedy"
    return f"{how.temperature:g}" + (f", top_p {how.top_p:g}" if how.top_p < 1 else "")


def main(
    model: Annotated[Path, typer.Option(help="Directory with heldout/*.txt.")] = Path("models/potluck-tiny"),
    contexts: Annotated[int, typer.Option(min=1, help="Pieces of each held-out text.")] = 40,
    tokens: Annotated[int, typer.Option(min=8, help="Generated behind each.")] = 96,
) -> None:
    """Print a row for each domain and setting; of each cell first, second and third draft."""
    started = time.perf_counter()
    head = load_local(open_model(model), torch.bfloat16)
    tokenizer = Tokenizer.load(model)
    cells = ("shared noise", "expected", "rejection, 1 - d", "(1 - d) / (1 + d)", "same top")
    table = Table("text", "temperature", "drafts", *cells, "tokens a step: shared, rejection")
    for path in sorted((model / "heldout").glob("*.txt")):
        text = tokenizer.encode_prompt(path.read_text(encoding="utf-8"))
        starts = np.linspace(0, len(text) - CONTEXT_TOKENS, contexts).astype(int)
        for how in SETTINGS:
            tallies = [Tally() for _ in range(DRAFTS)]
            for number, start in enumerate(starts):
                prompt = text[start : start + CONTEXT_TOKENS]
                seeded = SamplingParams(how.temperature, top_p=how.top_p, seed=number)
                listen(head, prompt, seeded, tokens, tallies)
            columns = list(zip(*(tally.shares() for tally in tallies), strict=True))
            table.add_row(
                path.stem,
                told(how),
                ", ".join(str(tally.tried) for tally in tallies),
                *(" ".join(f"{share:.3f}" for share in column) for column in columns),
                f"{tokens_a_step(columns[1]):.2f}, {tokens_a_step(columns[2]):.2f}",
            )
    console = Console(width=170)
    console.print(table)
    console.print(f"{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    typer.run(main)
