"""What is a loop, where it began, and what is none though it repeats."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.answers.loops import (
    IN_ANSWER,
    IN_REASONING,
    MOST_BREAKS,
    MOST_PERIOD,
    Limits,
    LoopDetector,
    Verdict,
)
from orchestrator.tokenizer import Tokenizer
from tests.examples import examples

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(ROOT / "models" / "potluck-tiny")


def verdicts(tokens: Iterable[int], limits: Limits = IN_ANSWER) -> list[tuple[int, Verdict]]:
    """All that are not fine, with the number of tokens so far."""
    detector = LoopDetector()
    found = [(number, detector.push(token, limits)) for number, token in enumerate(tokens, start=1)]
    return [(number, verdict) for number, verdict in found if verdict.kind != "fine"]


def noise(length: int, seed: int = 0) -> list[int]:
    """Tokens of a text that does not repeat itself."""
    return random.Random(seed).choices(range(10, 50_000), k=length)


@pytest.mark.parametrize("limits", [IN_REASONING, IN_ANSWER], ids=["reasoning", "answer"])
@pytest.mark.parametrize("period", [1, 2, 7, 8, 9, 30, 150, 600, MOST_PERIOD])
def test_a_cycle_is_found_where_it_begins_to_repeat(period: int, limits: Limits) -> None:
    before, cycle = noise(300, seed=1), noise(period, seed=2)
    tokens = before + cycle * (2 * limits.of(period) // period + 2)
    (at, verdict), *later = verdicts(tokens, limits)
    assert verdict.kind == "break"
    assert verdict.began == len(before) + period
    assert at == len(before) + period + limits.of(period)
    assert verdict.token_id == tokens[at]
    assert later[0][1].kind == "break"
    assert later[0][1].began == verdict.began


def test_a_cycle_longer_than_the_memory_is_not_found() -> None:
    assert verdicts(noise(MOST_PERIOD + 1) * 12) == []


def test_a_loop_that_goes_on_though_it_is_broken_is_stopped() -> None:
    """Each time the banned token is replaced by another one, and the loop comes again."""
    before, cycle = noise(100, seed=1), noise(12, seed=2)
    detector, tokens, kinds = LoopDetector(), [*before], []
    verdicts_of = [detector.push(token) for token in before]
    assert all(verdict.kind == "fine" for verdict in verdicts_of)
    at = 0
    while len(kinds) <= MOST_BREAKS:
        tokens.append(cycle[at % 12])
        at += 1
        verdict = detector.push(tokens[-1])
        if verdict.kind != "fine":
            kinds.append(verdict.kind)
            assert verdict.began == len(before) + 12
            assert verdict.token_id == cycle[at % 12]
            tokens.append(5)
            detector.push(5)
            at = 0
    assert kinds == ["break"] * MOST_BREAKS + ["stop"]
    assert len(tokens) < 100 + 2.2 * IN_ANSWER.tokens


def test_a_loop_long_after_another_one_is_broken_again() -> None:
    cycle = noise(10, seed=3)
    loop = cycle * ((IN_ANSWER.tokens + 20) // 10)
    kinds = [
        verdict.kind
        for _, verdict in verdicts(
            [token for seed in range(4) for token in (*noise(3 * IN_ANSWER.tokens, seed), *loop)]
        )
    ]
    assert kinds == ["break"] * 4


def test_one_thing_written_without_end(tokenizer: Tokenizer) -> None:
    for text in (
        "<",
        "\n",
        "Wait, let me check that again.\n",
        "| 0 | 0 |\n",
        "The answer is 7. " * 9 + "\n\n",
    ):
        found = verdicts(tokenizer.encode("Let me see.\n" + text * (60_000 // len(text))))
        assert [verdict.kind for _, verdict in found[: MOST_BREAKS + 1]] == ["break"] * MOST_BREAKS + ["stop"]


def table(rows: int) -> str:
    head = "| name | value | unit | note |\n|------|-------|------|------|\n"
    return head + "".join(
        f"| row {row} | {row * 37 % 101} | ms | measured on one box |\n" for row in range(rows)
    )


ORDINARY = {
    "table": table(300),
    "a table's empty cells": "| | | | |\n" * 40,
    "matrix of zeros": "[" + ",\n ".join("[" + ", ".join(["0"] * 16) + "]" for _ in range(16)) + "]",
    "identity": "\n".join(" ".join("1" if a == b else "0" for b in range(40)) for a in range(40)),
    "list": "".join(f"- [ ] check box number {number}\n" for number in range(400)),
    "same line": "        self.assertTrue(result)\n" * 30,
    "rules": ("=" * 110 + "\n" + "-" * 110 + "\n\n") * 5,
    "frame": "+" + "-" * 70 + "+\n" + ("|" + " " * 70 + "|\n") * 30 + "+" + "-" * 70 + "+\n",
    "art": "\n".join(" " * (20 - row) + "*" * (2 * row + 1) for row in range(20)),
    "JSON": "[" + ", ".join(f'{{"id": {number}, "ok": true, "tags": []}}' for number in range(300)) + "]",
    "CSV": "".join(f"{number},0.0,0.0,0.0,0.0,none\n" for number in range(300)),
    "hex": "0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,\n" * 12,
    "song": ("Row, row, row your boat, gently down the stream.\n" * 2 + "Merrily, merrily,\n" * 4) * 5,
    "switch": "".join(f"    case {number}:\n        return {number};\n" for number in range(300)),
}  # fmt: skip


@pytest.mark.parametrize("name", ORDINARY)
def test_what_repeats_and_is_wanted_is_no_loop(name: str, tokenizer: Tokenizer) -> None:
    assert verdicts(tokenizer.encode(ORDINARY[name])) == []


@pytest.mark.parametrize("pattern", ["docs/*.md", "docs/studies/*.csv", "models/potluck-tiny/heldout/*"])
def test_no_text_of_the_repository_is_a_loop(pattern: str, tokenizer: Tokenizer) -> None:
    paths = sorted(path for path in ROOT.glob(pattern) if path.is_file())[:30]
    assert paths
    for path in paths:
        tokens = tokenizer.encode(path.read_text(encoding="utf-8", errors="replace")[:30_000])
        assert verdicts(tokens, IN_REASONING) == [], path


def longest_run(tokens: Sequence[int]) -> int:
    """Tokens at the end that each equal the one a period before, for the best period."""
    return max(
        next(
            (run for run in range(len(tokens) - p) if tokens[-1 - run] != tokens[-1 - run - p]),
            len(tokens) - p,
        )
        for p in range(1, len(tokens))
    )


@given(
    st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), min_size=1, max_size=5), st.integers(2, 8)
)
@examples(60)
def test_a_verdict_has_a_run_behind_it(cycles: list[list[int]], times: int) -> None:
    """With limits so small that they are often reached: what is struck repeats as long as it must."""
    limits, detector, tokens = Limits(tokens=16, rounds=1), LoopDetector(), []
    for token in (token for cycle in cycles for token in cycle * times):
        tokens.append(token)
        if detector.push(token, limits).kind == "break":
            assert longest_run(tokens) >= 8


def test_memory_is_bounded() -> None:
    detector = LoopDetector()
    for token in [*noise(6 * MOST_PERIOD), *[7] * 3000]:
        detector.push(token)
        assert len(detector._places) <= len(detector._grams) <= MOST_PERIOD
