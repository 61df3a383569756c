"""The head against transformers' own implementation, in float32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from orchestrator.generate import GenerationParams, generate
from tests.orchestrator.heads import hidden_states, load_model
from tests.orchestrator.oracle_configs import ORACLE_CONFIGS
from tests.orchestrator.step35_oracle import Oracle
from tests.tiny_checkpoint import write_random_checkpoint

MAX_LOGIT_ERROR = 1e-4
PROMPT_TOKENS = 40
NEW_TOKENS = 64


@pytest.mark.parametrize("name", ORACLE_CONFIGS)
def test_logits_and_greedy_tokens_equal_the_oracles(name: str, tmp_path: Path) -> None:
    """The prompt is longer than the window; the sequence runs on through cache, chunks and drafts."""
    model_dir = write_random_checkpoint(tmp_path, **ORACLE_CONFIGS[name])
    model, oracle = load_model(model_dir), Oracle(model_dir)
    vocab = model.config.vocab_size
    prompt = torch.randint(vocab, (PROMPT_TOKENS,), generator=torch.Generator().manual_seed(9)).tolist()

    params = GenerationParams(
        max_tokens=NEW_TOKENS, ignore_eos=True, mtp=len(model.weights.mtp), chunk_size=7
    )
    generated = list(generate(model, prompt, params).token_ids)
    assert len(generated) == NEW_TOKENS

    # One pass over the whole sequence is enough: if each generated token is the oracle's choice after
    # those before it, the oracle would have generated the same sequence.
    expected = oracle.logits(prompt + generated[:-1])
    choices = expected[PROMPT_TOKENS - 1 :].clone()
    choices[:, list(model.config.eos_token_ids)] = -torch.inf
    assert generated == choices.argmax(dim=1).tolist()

    logits = model.logits(hidden_states(model, prompt + generated[:-1]))
    error = (logits - expected).abs().max().item()
    print(f"{name}: max abs logit error {error:.2e}")
    assert error <= MAX_LOGIT_ERROR
