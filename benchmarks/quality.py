"""What each weight format costs in quality: text compressed worse, and logits that rounding moves.

    python -m benchmarks.quality [--llamacpp DIR] [--tokens 4000]

The first table quantises potluck-tiny, whose rows of 128 allow types of 32 weights a block, and reads its
held-out text. The second takes a random model for each type. It compares logits with float64 arithmetic on
the same dequantised weights, so that only the rounding of activations shows. Where that rounding makes a
router choose another expert, the logits of that token and of later ones jump: the largest differences are
such tokens. llama.cpp's own difference stands beside it where DIR has `llama-logits`, see
`benchmarks/llamacpp.py`.
"""

from __future__ import annotations

import math
import os
import tempfile
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

from benchmarks.llamacpp import LlamaCpp
from benchmarks.plain_forward import PlainModel
from benchmarks.random_gguf import SMALL, FileTypes, write_random_gguf
from models.tiny.evaluate import windows
from models.tiny.gguf_file import write_gguf
from orchestrator.model.attention import SequenceSlice
from orchestrator.model.step35 import Step35Model
from orchestrator.session import load_local
from orchestrator.tokenizer import Tokenizer
from placement.weight_format import FORMATS
from workers.formats.open_model import open_model
from workers.probe.random_blocks import TYPES

TINY_TYPES = ("bf16", "q8_0", "q5_1", "q5_0", "iq4_nl", "q4_1", "q4_0", "mxfp4")
"""The first is what the others are compared with."""
LOGIT_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Difference:
    """Of two sets of logits, a token at a time.

    Attributes:
        median, most: root mean square of the differences by the spread of the reference's logits.
        divergence: mean Kullback-Leibler divergence from the reference, in bits.
        same: share of tokens whose largest logit is the reference's.
    """

    median: float
    most: float
    divergence: float
    same: float

    @classmethod
    def of(cls, logits: NDArray[np.floating], reference: NDArray[np.floating]) -> Difference:
        """Args: float [num_tokens, vocab] each."""
        wide, expected = logits.astype(np.float64), reference.astype(np.float64)
        off = np.sqrt(np.square(wide - expected).mean(axis=1)) / expected.std()
        return cls(
            median=float(np.median(off)),
            most=float(off.max()),
            divergence=float(divergence_bits(wide, expected).mean()),
            same=float((wide.argmax(axis=1) == expected.argmax(axis=1)).mean()),
        )


def divergence_bits(logits: NDArray[np.float64], reference: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of each token: what coding the reference's choices with the other's probabilities costs more."""
    ours, theirs = _log_probabilities(logits), _log_probabilities(reference)
    bits: NDArray[np.float64] = (np.exp(theirs) * (theirs - ours)).sum(axis=1) / math.log(2)
    return bits


def _log_probabilities(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max(axis=1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def logits_of(head: Step35Model, token_ids: Sequence[int]) -> NDArray[np.float32]:
    """One pass over a text: float32 [num_tokens, vocab]."""
    part = [SequenceSlice(head.new_cache(), len(token_ids))]
    logits: NDArray[np.float32] = head.logits(head.forward(torch.tensor(token_ids), part)).numpy()
    return logits


def tiny_table(model: Path, folder: Path, tokens: int, console: Console) -> Table:
    """potluck-tiny in each type on the beginning of each held-out text."""
    tokenizer = Tokenizer.load(model)
    names = sorted(path.stem for path in (model / "heldout").glob("*.txt"))
    texts = {
        name: tokenizer.encode_prompt((model / "heldout" / f"{name}.txt").read_text())[:tokens]
        for name in names
    }
    columns = [column for name in names for column in (f"{name} bits/byte", "KL bits", "same choice")]
    table = Table("type", *columns)
    reference: dict[str, list[NDArray[np.float32]]] = {}
    for kind in TINY_TYPES:
        console.print(f"potluck-tiny in {kind} …")
        path = folder / f"{kind}.gguf"
        write_gguf(model, path, kind)
        head = load_local(open_model(path), torch.bfloat16)
        cells = []
        for name, token_ids in texts.items():
            found, bits = read(head, token_ids)
            first = reference.setdefault(name, found)
            off = Difference.of(np.concatenate(found), np.concatenate(first))
            num_bytes = len(tokenizer.decode(token_ids).encode())
            cells += [f"{bits / num_bytes:.4f}", f"{off.divergence:.5f}", f"{off.same:.1%}"]
        table.add_row(kind, *cells)
        path.unlink()
    return table


def read(head: Step35Model, token_ids: Sequence[int]) -> tuple[list[NDArray[np.float32]], float]:
    """Logits by window for every token after the first, each once, and what the tokens cost in bits."""
    found, bits = [], 0.0
    for start, end, first in windows(len(token_ids)):
        logits = logits_of(head, token_ids[start:end])[first - start - 1 : -1]
        chances = _log_probabilities(logits.astype(np.float64))
        bits -= float(chances[np.arange(len(logits)), token_ids[first:end]].sum()) / math.log(2)
        found.append(logits)
    return found, bits


def random_table(forms: Sequence[str], folder: Path, build: LlamaCpp | None, console: Console) -> Table:
    """A random model in each form against float64, llama.cpp beside it."""
    columns = ("median", "largest", "KL bits", "same choice")
    theirs = [f"llama.cpp {column}" for column in columns] if build else []
    table = Table("type", *columns, *theirs)
    token_ids = [int(token) for token in np.random.default_rng(5).integers(3, SMALL.vocab, LOGIT_TOKENS)]
    for form in forms:
        console.print(f"random model in {form} …")
        path = write_random_gguf(folder / f"{form}.gguf", SMALL, FileTypes.all_in(form))
        reference = PlainModel(path).logits(token_ids)
        each = [Difference.of(logits_of(load_local(open_model(path), torch.float32), token_ids), reference)]
        if build is not None:
            each.append(Difference.of(build.logits(path, token_ids, SMALL.vocab), reference))
        table.add_row(form, *(cell for off in each for cell in _cells(off)))
        path.unlink()
    return table


def _cells(off: Difference) -> tuple[str, ...]:
    return f"{off.median:.2e}", f"{off.most:.2e}", f"{off.divergence:.2e}", f"{off.same:.1%}"


def main(
    model: Annotated[Path, typer.Option(help="Directory with heldout/*.txt.")] = Path("models/potluck-tiny"),
    tokens: Annotated[int, typer.Option(min=16, help="Of each held-out text.")] = 4000,
    llamacpp: Annotated[Path | None, typer.Option(help="Folder of a build.")] = None,
    threads: Annotated[int, typer.Option(min=1)] = os.cpu_count() or 1,
) -> None:
    """Print both tables."""
    torch.set_num_threads(threads)
    console = Console(width=160)
    build = LlamaCpp.find(llamacpp, threads)
    if build is None or not build.gives_logits:
        console.print("llama.cpp's differences are left out: no llama-logits in the folder of a build")
        build = None
    forms = [form for form in TYPES if form in FORMATS]
    with tempfile.TemporaryDirectory() as scratch:
        console.print(tiny_table(model, Path(scratch), tokens, console))
        console.print(random_table(forms, Path(scratch), build, console))


if __name__ == "__main__":
    typer.run(main)
