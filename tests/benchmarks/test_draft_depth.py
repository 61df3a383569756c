"""The benchmark's servers say the same, however they draft."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.draft_depth import (
    Server,
    Together,
    held_out_by_the_best,
    play,
    requests_of,
    temperature_of,
)
from orchestrator.serving.prompts import Prompts
from orchestrator.session import load_local
from orchestrator.tokenizer import Tokenizer
from workers.formats.open_model import open_model

MODEL = Path(__file__).parents[2] / "models" / "potluck-tiny"


def test_each_way_drafts_as_it_says_and_all_say_the_same() -> None:
    head = load_local(open_model(MODEL), torch.bfloat16)
    tokenizer = Tokenizer.load(MODEL)
    ways = ("off", "2", "adaptive")
    servers = {way: Server.of(way, head, tokenizer, time.thread_time) for way in ways}
    text = (MODEL / "heldout" / "prose.txt").read_text(encoding="utf-8")[:2000]
    prompts = Prompts(tokenizer, head.config.vocab_size, head.config.eos_token_ids)
    play(list(servers.values()), requests_of(tokenizer, text, 8, 12), 2, prompts)
    drafted = {way: server.runner.counts.totals({}).drafted for way, server in servers.items()}
    assert drafted["off"] == ()
    assert len(drafted["2"]) == 2
    assert len(drafted["adaptive"]) <= 3
    off = servers["off"]
    assert len(off.tokens) == 8
    assert all(48 + 6 <= len(tokens) <= 48 + 18 for tokens in off.tokens.values())
    assert len({len(tokens) for tokens in off.tokens.values()}) > 1
    # The first two answers of each place warm up, and the last two leave places empty when they end.
    assert 10 <= len(off.steps) <= 40
    assert all(off.speeds(2) > 0)


def test_the_hotter_tokens_are_drawn_the_more_drafts_of_a_random_model_hold() -> None:
    luck = np.random.default_rng(7)
    for wanted in (0.3, 0.75):
        noise, trunk, draft = luck.gumbel(size=(2000, 256)), *luck.standard_normal((2, 2000, 256))
        heat = temperature_of(wanted, 256)
        held = (noise + trunk / heat).argmax(axis=1) == (noise + draft / heat).argmax(axis=1)
        assert abs(held.mean() - wanted) < 0.06


def server(speeds: list[float]) -> Server:
    """With that speed in each eighth of what counts."""
    return Server(None, time.thread_time, steps=[(1.0, of) for of in speeds])  # type: ignore[arg-type, list-item]


def test_servers_that_are_alike_count_together() -> None:
    both = Together((server([10.0] * 8), server([10.0, 10.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0])))
    assert both.speeds().tolist() == [7.75]
    assert both.speeds(4).tolist() == [10.0, 7.0, 7.0, 7.0]
    assert both.speed_of_half(0) == both.speed_of_half(1)


def test_the_luckiest_one_is_not_taken_for_the_best() -> None:
    steady, found = server([10.0] * 8), server([9.0] * 8)
    lucky = server([14.0, 8.0] * 4)
    assert lucky.speeds()[0] > steady.speeds()[0]
    assert abs(held_out_by_the_best(found, [steady]) - 0.9) < 1e-9
    # It was fast where the other half chose somebody else, and slow where it was chosen.
    assert abs(held_out_by_the_best(found, [steady, lucky]) - (9 / 10 * 9 / 8) ** 0.5) < 1e-9
