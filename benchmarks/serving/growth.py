"""How much more several sequences get together than one, beside what bytes alone would allow.

A pass of several rows reads an expert once for all of them. If passes were bound by what they read, n rows
would take bytes(n) / bytes(1) as long as one, and n sequences get n · bytes(1) / bytes(n) times the tokens:
that is the floor of time turned into a bound of growth.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray

from benchmarks.real_size.work import FileWork
from benchmarks.serving.asks import Ask, Asks
from benchmarks.serving.client import complete
from orchestrator.generate import GenerationParams, new_sequence, prefill
from orchestrator.model.routing_recorder import RoutingRecorder
from orchestrator.session import load_local
from workers.formats.open_model import load_config, model_name, open_model

SEQUENCES = (1, 2, 4, 8)
_DRAWS = 200
_BEHIND = 64
"""Tokens before a pass whose bytes are counted: about as many as in the runs."""


@dataclass(frozen=True, slots=True)
class Growth:
    """Of `sequences` decoded together.

    Attributes:
        gap_s: from one of a sequence's tokens to the next, while all of them are decoded.
        num_bytes: distinct ones that a pass of so many rows reads.
        experts: distinct ones of a layer.
    """

    sequences: int
    gap_s: float
    num_bytes: float
    experts: float


async def gap_of(address: tuple[str, int], asks: Asks, sequences: int, tokens: int, first: int) -> float:
    """Mean seconds from token to token while so many answers are written together: the median answer's."""
    wanted = [
        Ask(ask.prompt[:16], tokens, ask.seed) for ask in map(asks.ask, range(first, first + sequences))
    ]
    answers = await asyncio.gather(*(complete(address, ask) for ask in wanted))
    return median(
        (answer.pieces_s[-1] - answer.pieces_s[0]) / (answer.tokens - 1)
        for answer in answers
        if answer.outcome == "answered"
    )


def bytes_read(model: Path, texts: Sequence[Sequence[int]], dtype: str) -> dict[int, tuple[float, float]]:
    """Distinct bytes of a pass, and distinct experts of a layer, by the number of rows.

    Rows are drawn from what the model chose in different texts, as sequences together are.

    Args:
        texts: token ids, at least as many as rows.
    """
    import torch

    chosen = routing(model, texts, getattr(torch, dtype))
    work = FileWork.of(model, load_config(model).shape(model_name(model)))
    random = np.random.default_rng(0)
    found = {}
    for rows in SEQUENCES:
        num_bytes, experts = [], []
        for _ in range(_DRAWS):
            of = random.choice(len(chosen), rows, replace=False)
            drawn = np.stack([chosen[text][random.integers(len(chosen[text]))] for text in of])
            num_bytes.append(work.distinct_bytes(drawn, _BEHIND))
            experts.append(np.mean([len(np.unique(drawn[:, layer])) for layer in range(drawn.shape[1])]))
        found[rows] = (float(np.mean(num_bytes)), float(np.mean(experts)))
    return found


def routing(model: Path, texts: Sequence[Sequence[int]], dtype: object) -> list[NDArray[np.int64]]:
    """Of each text: int64 [num_tokens, moe_layers, top_k]."""
    head = load_local(open_model(model), dtype)  # type: ignore[arg-type]
    config = head.config
    found = []
    for text in texts:
        recorder = RoutingRecorder(config.moe_layers, config.moe_num_experts, config.moe_top_k)
        head.recorder = recorder
        sequence = new_sequence(head, None, list(text), GenerationParams(max_tokens=1, ignore_eos=True))
        prefill(head, None, sequence, 256)
        found.append(recorder.trace().astype(np.int64))
        sequence.close()
    return found
