"""What Prometheus is told, as its own parser reads it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from orchestrator.api.metrics import metrics_of, prometheus_text
from orchestrator.serving.state import ServerState, Totals
from tests.orchestrator.api.watched import HOSTILE, STATE, Watched

DOCS = Path(__file__).parents[3] / "docs"
ROW = re.compile(r"(?m)^\| `(potluck_\w+)` \| (\w+) \| ?(.*?) \| (.*) \|$")


def samples(state: ServerState) -> dict[str, dict[tuple[str, ...], float]]:
    """By name, the values by their labels' values."""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    text = prometheus_text(Watched(state)).decode()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sample.labels.values())] = sample.value
    return found


def test_metrics_are_those_of_the_page_about_them() -> None:
    page = (DOCS / "metrics.md").read_text(encoding="utf-8")
    documented = {
        name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels, _ in ROW.findall(page)
    }
    made = {}
    for metric in metrics_of(STATE):
        name = f"{metric.name}_total" if metric.type == "counter" else metric.name
        labels = {label for sample in metric.samples for label in sample.labels} - {"le"}
        made[name] = (metric.type, labels)
    assert made == documented


def test_values_are_those_of_the_state() -> None:
    found = samples(STATE)
    assert found["potluck_model_info"] == {("tiny",): 1}
    assert found["potluck_can_compute"][()] == 1
    assert found["potluck_requests_finished_total"] == {("stop",): 5, ("length",): 2}
    assert found["potluck_accepted_tokens_total"] == {("1",): 80, ("2",): 20}
    assert found["potluck_step_part_seconds_total"] == {("attention",): 1.5, ("remote_wait",): 2.5}
    assert found["potluck_box_bytes"] == {("head",): 2000, (HOSTILE,): 3000}
    assert found["potluck_box_standing"][HOSTILE, "h2", "lost"] == 1
    assert found["potluck_box_round_trip_seconds"] == {(HOSTILE,): 0.0015}


def test_histograms_count_all_up_to_an_edge() -> None:
    found = samples(STATE)
    assert found["potluck_first_token_seconds_bucket"] == {("0.1",): 4, ("1.0",): 6, ("+Inf",): 7}
    assert found["potluck_first_token_seconds_count"][()] == 7
    assert found["potluck_first_token_seconds_sum"][()] == 5.5
    assert found["potluck_request_seconds_bucket"] == {("+Inf",): 0}


@pytest.mark.parametrize(
    "state", [STATE, replace(STATE, boxes=(), totals=Totals(), lack="boxes are missing")]
)
def test_every_state_can_be_told(state: ServerState) -> None:
    assert samples(state)["potluck_can_compute"][()] == (not state.lack)
