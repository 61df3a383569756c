"""Print how far the head's logits are from transformers', per tiny configuration.

Run from the project's root: `python -m benchmarks.oracle`.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from tests.orchestrator.oracle_comparison import NEW_TOKENS, ORACLE_CONFIGS, compare_with_oracle


def main() -> None:
    torch.set_num_threads(1)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    table = Table("configuration", "max abs logit error", "equal greedy tokens", "drafts accepted")
    for name in ORACLE_CONFIGS:
        with tempfile.TemporaryDirectory() as directory:
            comparison = compare_with_oracle(name, Path(directory))
        generation = comparison.generation
        table.add_row(
            name,
            f"{comparison.max_abs_logit_error:.2e}",
            f"{comparison.equal_tokens} of {NEW_TOKENS}",
            f"{generation.accepted_drafts} of {generation.drafted}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
