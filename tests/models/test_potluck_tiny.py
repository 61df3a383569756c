"""The shipped model is complete, of the published layout, and knows its texts."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer

from models.tiny.config import TinyConfig
from models.tiny.corpus import DOMAINS
from models.tiny.export import published_tensors, read_checkpoint
from models.tiny.net import TinyModel
from models.tiny.tokenizer import CHAT_TEMPLATE

MODEL = Path(__file__).parents[2] / "models" / "potluck-tiny"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(MODEL / "tokenizer.json"))


def _held_out(domain: str) -> str:
    return (MODEL / "heldout" / f"{domain}.txt").read_text()


def test_folder_is_within_25_megabytes() -> None:
    assert sum(path.stat().st_size for path in MODEL.rglob("*") if path.is_file()) <= 25_000_000


def test_tensors_are_those_of_the_config() -> None:
    config = TinyConfig.from_json(MODEL / "config.json")
    assert config == TinyConfig()
    expected = {name: list(t.shape) for name, t in published_tensors(TinyModel(config))}
    with safe_open(MODEL / "model.safetensors", "pt") as stored:
        found = {name: stored.get_slice(name) for name in stored.keys()}  # noqa: SIM118
        assert {name: part.get_shape() for name, part in found.items()} == expected
        for name, part in found.items():
            assert part.get_dtype() == ("F32" if name.endswith("router_bias") else "BF16"), name
    for layer in sorted(config.moe_layers):
        assert expected[f"model.layers.{layer}.moe.gate_proj.weight"] == [288, 16, 128]
    assert expected["model.layers.8.transformer.shared_head.output.weight"] == [2048, 128]


def test_tokenizer_round_trips_and_carries_the_template(tokenizer: Tokenizer) -> None:
    for domain in DOMAINS:
        assert tokenizer.decode(tokenizer.encode(_held_out(domain)).ids) == _held_out(domain)
    assert tokenizer.get_vocab_size() == TinyConfig().vocab_size
    document = json.loads((MODEL / "tokenizer_config.json").read_text())
    assert document["chat_template"] == CHAT_TEMPLATE.read_text()


def test_prompts_are_held_out_text() -> None:
    prompts = json.loads((MODEL / "prompts.json").read_text())
    assert tuple(prompts) == DOMAINS
    assert all(text and text in _held_out(domain) for domain, text in prompts.items())


def test_a_window_of_each_domain_takes_under_two_bits_a_byte_and_drafts_agree(tokenizer: Tokenizer) -> None:
    model = read_checkpoint(MODEL)
    agreed = compared = 0
    for domain in DOMAINS:
        text = _held_out(domain)[:3000]
        tokens = torch.tensor([[0, *tokenizer.encode(text).ids]])
        with torch.inference_mode():
            hidden = model.hidden_states(tokens)
            logits = model.logits(hidden)
            log_probs = logits[0, :-1].log_softmax(-1).gather(1, tokens[0, 1:, None])
            draft = model.mtp_layers[0](model.embed_tokens(tokens[:, 1:]), hidden[:, :-1])
            drafted = model.mtp_layers[0].logits(draft).argmax(-1)
        assert -log_probs.sum().item() / math.log(2) / len(text.encode()) < 2.0, domain
        agreed += int((drafted == logits[:, 1:].argmax(-1)).sum())
        compared += drafted.numel()
    assert agreed / compared > 0.5
