"""What potluck-tiny is worth, measured with the project's own head on its shipped held-out text.

    python -m benchmarks.tiny_model [--model models/potluck-tiny]

Bits per byte beside `xz -9` on the same bytes; how unevenly experts are used; how often an expert stays for
the next token; how many drafts are accepted when the model continues the held-out text greedily.
"""

from __future__ import annotations

import lzma
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from models.tiny.evaluate import gini, top_tenth_share, windows
from orchestrator.generate import GenerationParams, generate
from orchestrator.model.attention import SequenceSlice
from orchestrator.model.routing_recorder import RoutingRecorder
from orchestrator.model.step35 import Step35Model
from orchestrator.session import load_local
from orchestrator.tokenizer import Tokenizer
from workers.formats.open_model import open_model

DRAFTS = 3
CONTEXT_TOKENS, CONTINUED_TOKENS, CONTINUATIONS = 128, 32, 40


@dataclass(frozen=True, slots=True)
class TextFigures:
    """One text: its cost in bits, and the experts of every token, uint16 [num_tokens, moe_layers, top_k]."""

    bits: float
    trace: NDArray[np.uint16]


def read_text(head: Step35Model, token_ids: Sequence[int]) -> TextFigures:
    """Predict every token after the first from at least 512 earlier ones, where there are so many."""
    config = head.config
    bits, traces = 0.0, []
    for start, end, first in track(list(windows(len(token_ids))), "reading", console=Console(stderr=True)):
        head.recorder = RoutingRecorder(config.moe_layers, config.moe_num_experts, config.moe_top_k)
        tokens = torch.tensor(token_ids[start:end])
        hidden = head.forward(tokens, [SequenceSlice(head.new_cache(), len(tokens))])
        logits = head.logits(hidden)[first - start - 1 : -1].double()
        bits -= float(logits.log_softmax(-1).gather(1, tokens[first - start :, None]).sum()) / math.log(2)
        traces.append(head.recorder.trace()[first - start :])
    head.recorder = None
    return TextFigures(bits, np.concatenate(traces))


def repeated_share(trace: NDArray[np.uint16]) -> NDArray[np.float64]:
    """How often a token's expert was also its predecessor's, float64 [moe_layers]."""
    same = (trace[1:, :, :, None] == trace[:-1, :, None, :]).any(axis=3)
    share: NDArray[np.float64] = same.mean(axis=(0, 2))
    return share


def chance_share(counts: NDArray[np.int64], top_k: int) -> NDArray[np.float64]:
    """The same if tokens chose independently with the counted frequencies, float64 [moe_layers]."""
    frequency = counts * (top_k / counts.sum(axis=1, keepdims=True))
    share: NDArray[np.float64] = (frequency**2).sum(axis=1) / top_k
    return share


def contexts(token_ids: Sequence[int]) -> Iterator[Sequence[int]]:
    """Evenly spread pieces of a text to continue."""
    for place in np.linspace(0, len(token_ids) - CONTEXT_TOKENS, CONTINUATIONS).astype(int).tolist():
        yield token_ids[place : place + CONTEXT_TOKENS]


def main(
    model: Annotated[Path, typer.Option(help="Model directory with heldout/*.txt.")] = Path(
        "models/potluck-tiny"
    ),
) -> None:
    """Print the model's tables."""
    torch.set_num_threads(1)
    head = load_local(open_model(model), torch.float32)
    tokenizer = Tokenizer.load(model)
    layers, experts, top_k = head.config.moe_layers, head.config.moe_num_experts, head.config.moe_top_k
    console = Console()
    size = Table("text", "bytes", "bits/byte", "xz -9 bits/byte", *(f"draft {k + 1}" for k in range(DRAFTS)))
    use = Table("text", "layer", "unused", "Gini", "hottest tenth", "also predecessor's", "by chance")
    for path in sorted((model / "heldout").glob("*.txt")):
        text = path.read_bytes()
        token_ids = tokenizer.encode_prompt(text.decode())
        figures = read_text(head, token_ids)
        drafted, accepted = np.zeros(DRAFTS, int), np.zeros(DRAFTS, int)
        for context in contexts(token_ids):
            result = generate(
                head, context, GenerationParams(max_tokens=CONTINUED_TOKENS, mtp=DRAFTS, ignore_eos=True)
            )
            drafted += result.drafted_by_position
            accepted += result.accepted_by_position
        size.add_row(
            path.stem,
            str(len(text)),
            f"{figures.bits / len(text):.3f}",
            f"{8 * len(lzma.compress(text, preset=9)) / len(text):.3f}",
            *(f"{100 * share:.1f}%" for share in accepted / drafted),
        )
        counts = np.stack(
            [np.bincount(row.ravel(), minlength=experts) for row in figures.trace.swapaxes(0, 1)]
        )
        repeated, chance = repeated_share(figures.trace), chance_share(counts, top_k)
        for row, layer in enumerate(layers):
            use.add_row(
                path.stem,
                str(layer),
                str(int((counts[row] == 0).sum())),
                f"{gini(counts[row]):.2f}",
                f"{100 * top_tenth_share(counts[row]):.0f}%",
                f"{100 * repeated[row]:.0f}%",
                f"{100 * chance[row]:.0f}%",
            )
    console.print("Compression, and drafts accepted of those made when continuing the text greedily", size)
    console.print("Use of the routed experts on held-out text", use)


if __name__ == "__main__":
    typer.run(main)
