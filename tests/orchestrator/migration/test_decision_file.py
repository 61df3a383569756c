"""What `potluck status` reads is what was decided last."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.migration.decision_file import DECISION, DecisionError, read_decision, write_decision
from orchestrator.migration.migration import MigrationPhase, MigrationState

STATE = MigrationState(MigrationPhase.LOADING, "the traffic has changed", 12.5, 0.001, 40.0, 3, 300)


def test_a_decision_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert read_decision(tmp_path) is None
    write_decision(STATE, tmp_path, 1.7e9)
    assert read_decision(tmp_path) == replace(STATE, decided_s=1.7e9)
    plain = MigrationState(MigrationPhase.WATCHING, "too early to see a change", 0.0)
    write_decision(plain, tmp_path, 1.7e9)
    assert read_decision(tmp_path) == replace(plain, decided_s=1.7e9)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("{", "JSON"),
        ("[]", "expected an object with phase, reason"),
        (
            '{"phase": "flying", "reason": "", "decided_s": 1, "p_value": null, "payback_s": null,'
            ' "moved_experts": 0, "moved_bytes": 0}',
            "phase: expected one of watching",
        ),
        (
            '{"phase": "watching", "reason": "", "decided_s": null, "p_value": null, "payback_s": null,'
            ' "moved_experts": 0, "moved_bytes": 0}',
            "decided_s: expected a number",
        ),
        *(
            (
                '{"phase": "watching", "reason": "", "decided_s": 1, "p_value": null,'
                f' "payback_s": {number}, "moved_experts": 0, "moved_bytes": 0}}',
                "payback_s: expected a number",
            )
            for number in ("Infinity", "-1e999", "NaN", "9" * 400)
        ),
    ],
)
def test_what_is_no_decision_is_refused(tmp_path: Path, text: str, what: str) -> None:
    (tmp_path / DECISION).write_text(text)
    with pytest.raises(DecisionError, match=what):
        read_decision(tmp_path)
