"""The benchmark's servers say the same, and fitting drafts hold more often."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from benchmarks.draft_depth import Server, play
from benchmarks.held_drafts import FreeDrafter, requests_of
from orchestrator.serving.prompts import Prompts
from orchestrator.session import load_local
from orchestrator.tokenizer import Tokenizer
from workers.formats.open_model import open_model

MODEL = Path(__file__).parents[2] / "models" / "potluck-tiny"


def test_answers_of_each_form_are_the_same_and_more_fitting_drafts_hold() -> None:
    head = load_local(open_model(MODEL), torch.bfloat16)
    tokenizer = Tokenizer.load(MODEL)
    prompts = Prompts(tokenizer, head.config.vocab_size, head.config.eos_token_ids)
    text = tokenizer.encode_prompt((MODEL / "heldout" / "prose.txt").read_text(encoding="utf-8")[:2000])
    servers = {"off": Server.of("off", head, tokenizer, time.thread_time)}
    servers["free"] = Server.of("3", head, tokenizer, time.thread_time, FreeDrafter)
    servers["fitting"] = Server.of("3", head, tokenizer, time.thread_time)
    for kind in ("none", "schema", "regex", "tools"):
        before = {way: sum(server.runner.counts.totals({}).accepted) for way, server in servers.items()}
        play(list(servers.values()), requests_of(kind, text, tokenizer, 3, 12, 0.7), 1, prompts)
        after = {way: sum(server.runner.counts.totals({}).accepted) for way, server in servers.items()}
        held = {way: after[way] - before[way] for way in servers}
        assert held["off"] == 0
        assert held["fitting"] > held["free"] or (held["fitting"] == held["free"] > 0 and kind == "none")
