"""What keeping keys and values in fewer bits costs: potluck-tiny on its held-out text.

    python -m benchmarks.kv_quality [--model models/potluck-tiny]

Bits per byte with keys and values in float32, bfloat16 and int8, everything else in bfloat16 alike; and the
Kullback-Leibler divergence of the predictions from those with bfloat16, in bits a token.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from models.tiny.evaluate import windows
from orchestrator.model.attention import SequenceSlice
from orchestrator.model.step35 import Step35Model
from orchestrator.session import load_local
from orchestrator.tokenizer import Tokenizer
from placement.kv_size import KvForm
from workers.formats.open_model import open_model


def predictions(head: Step35Model, tokens: Tensor) -> Tensor:
    """Logarithms of the probabilities of every next token, float64 [num_tokens - 1, vocab]."""
    hidden = head.forward(tokens, [SequenceSlice(head.new_cache(), len(tokens))])
    return head.logits(hidden)[:-1].double().log_softmax(-1)


def main(
    model: Annotated[Path, typer.Option(help="Model directory with heldout/*.txt.")] = Path(
        "models/potluck-tiny"
    ),
) -> None:
    """Print the table."""
    heads = {form: load_local(open_model(model), torch.bfloat16, form) for form in KvForm}
    tokenizer = Tokenizer.load(model)
    table = Table("text", *(f"bits/byte {form}" for form in KvForm), *(f"KL {form}" for form in KvForm))
    for path in sorted((model / "heldout").glob("*.txt")):
        text = path.read_bytes()
        token_ids = tokenizer.encode_prompt(text.decode())
        bits, divergence = dict.fromkeys(KvForm, 0.0), dict.fromkeys(KvForm, 0.0)
        for start, end, first in windows(len(token_ids)):
            tokens = torch.tensor(token_ids[start:end])
            place = first - start - 1
            found = {form: predictions(head, tokens)[place:] for form, head in heads.items()}
            reference = found[KvForm.bfloat16]
            for form, logs in found.items():
                bits[form] -= float(logs.gather(1, tokens[first - start :, None]).sum()) / math.log(2)
                divergence[form] += float((reference.exp() * (reference - logs)).sum()) / math.log(2)
        costs = [f"{bits[form] / len(text):.4f}" for form in KvForm]
        table.add_row(
            path.stem, *costs, *(f"{divergence[form] / (len(token_ids) - 1):.1e}" for form in KvForm)
        )
    Console(width=110).print(table)


if __name__ == "__main__":
    typer.run(main)
