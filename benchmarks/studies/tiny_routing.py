"""The shipped model's own routing, token by token, at the sizes of Step-3.5-Flash's experts."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from orchestrator.routing_trace import record_trace
from orchestrator.session import load_local
from orchestrator.tokenizer import Tokenizer
from placement.answers.study.routing_source import Routing
from placement.given.stats import RoutingStats
from placement.model_shape import STEP_3_5_FLASH, ModelShape
from workers.formats.open_model import open_model

MODEL = Path(__file__).resolve().parents[2] / "models" / "potluck-tiny"
# As `potluck stats` cuts text, and so the documents of the trace.
WINDOW_TOKENS = 1024

# Five MoE layers of 288 experts, as potluck-tiny has, of the real model's sizes.
TINY_ON_STEP: ModelShape = dataclasses.replace(
    STEP_3_5_FLASH,
    name="potluck-tiny routing, step-3.5-flash experts",
    moe_layers=tuple(range(3, 8)),
    attention=(*STEP_3_5_FLASH.attention[:8], *STEP_3_5_FLASH.attention[-3:]),
)


def tiny_routing(text: str, num_tokens: int) -> Routing:
    """`num_tokens` of a held-out text of the model to plan on, as many behind them to be judged by.

    Args:
        text: python, prose or technical.
    """
    token_ids = Tokenizer.load(MODEL).encode_prompt((MODEL / "heldout" / f"{text}.txt").read_text("utf-8"))
    head = load_local(open_model(MODEL), torch.float32)
    trace = record_trace(head, [token_ids[: 2 * num_tokens]], WINDOW_TOKENS)
    stats = RoutingStats.from_trace(TINY_ON_STEP, trace[:num_tokens], f"potluck-tiny, {text}")
    return Routing(stats, trace[num_tokens:], WINDOW_TOKENS)
