"""What `potluck status` says of a cluster, as a table's lines and as JSON."""

from __future__ import annotations

import json
from dataclasses import replace

from orchestrator.cli.status import document, words
from orchestrator.cluster.run_state import RunState
from orchestrator.cluster.status import BoxStatus, ClusterStatus
from orchestrator.migration.migration import MigrationPhase, MigrationState

STATE = RunState(
    "home", "/m", "", "/p.json", "h1", "10.0.0.1:6379", 1.0, (), {"h2": "h2 (10.0.0.2): unreachable"}
)
LOST = BoxStatus("h2", "10.0.0.2", "worker", "missing", None, 0, 0, None, None, "h2 (10.0.0.2): unreachable")
NOW = 1_800_000_000.0
MOVING = MigrationState(MigrationPhase.LOADING, "the traffic has changed", 5.0, p_value=0.001)


def test_json_is_whole_also_where_experts_move() -> None:
    found = json.loads(json.dumps(document(ClusterStatus(STATE, (LOST,), 7, "", 3, MOVING))))
    assert found["keeper"] == {"pid": 7, "last_word": ""}
    assert found["boxes"][0]["word"] == "h2 (10.0.0.2): unreachable"
    assert found["migration"] == {
        "phase": "loading",
        "reason": "the traffic has changed",
        "decided_s": 5.0,
        "p_value": 0.001,
        "payback_s": None,
        "moved_experts": 0,
        "moved_bytes": 0,
    }


def test_lines_name_what_misses_and_what_to_do_without_a_keeper() -> None:
    lines = words(ClusterStatus(STATE, (LOST,), None, "", 3, None), NOW)
    assert lines[0] == "h2 (10.0.0.2): unreachable"
    assert "3 experts" in lines[1]
    assert "`potluck up`" in lines[2]


def test_a_box_without_experts_is_said_to_be_idle_and_why() -> None:
    spare = BoxStatus("h3", "10.0.0.3", "spare", "idle", None, 0, 0, None, None, "")
    lines = words(ClusterStatus(STATE, (spare,), 7, "", 0, None), NOW)
    assert lines == ["h3: idle, because the plan puts no experts there"]


def test_the_last_decision_about_moving_is_one_line_with_its_figures() -> None:
    moved = replace(MOVING, decided_s=NOW - 60, payback_s=12.3, moved_experts=1200, moved_bytes=14_745_600)
    line = words(ClusterStatus(STATE, (), 7, "", 0, moved), NOW)[0]
    assert line == (
        "moving experts, 60 s ago: loading: the traffic has changed; pays within 13 s; 1,200 experts "
        "(14.7 MB) have moved"
    )
    first = MigrationState(MigrationPhase.WATCHING, "too early to see a change", NOW - 3)
    line = words(ClusterStatus(STATE, (), 7, "", 0, first), NOW)[0]
    assert line == "moving experts, 3 s ago: watching: too early to see a change"
