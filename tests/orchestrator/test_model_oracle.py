"""The head against transformers' own implementation, in float32."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.orchestrator.oracle_comparison import NEW_TOKENS, ORACLE_CONFIGS, compare_with_oracle

# One process imports transformers.
pytestmark = pytest.mark.xdist_group("transformers")

MAX_LOGIT_ERROR = 1e-4


@pytest.mark.parametrize("name", ORACLE_CONFIGS)
def test_logits_and_greedy_tokens_equal_the_oracles(name: str, tmp_path: Path) -> None:
    """The prompt is longer than the window; the sequence runs on through cache, chunks and drafts."""
    comparison = compare_with_oracle(name, tmp_path)
    print(f"{name}: max abs logit error {comparison.max_abs_logit_error:.2e}")
    assert len(comparison.generation.token_ids) == NEW_TOKENS
    assert comparison.equal_tokens == NEW_TOKENS
    assert comparison.max_abs_logit_error <= MAX_LOGIT_ERROR
