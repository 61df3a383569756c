"""A server's state for Prometheus (docs/metrics.md)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from orchestrator.serving.state import BoxState, Histogram, ServerState, StateSource, Totals

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Of the format that `prometheus_text` writes; every scraper reads it."""


def prometheus_text(source: StateSource) -> bytes:
    """All metrics as they are now."""
    registry = CollectorRegistry()
    registry.register(_StateCollector(source))
    return generate_latest(registry)


def metrics_of(state: ServerState) -> Iterator[Metric]:
    """Each with all of its samples."""
    yield _by("potluck_model_info", "1, with the model's name.", "model", {state.model: 1})
    yield _gauge("potluck_uptime_seconds", "Since the server began.", state.up_s)
    yield _gauge("potluck_can_compute", "1, or 0 while experts or boxes are missing.", not state.lack)
    yield _gauge("potluck_tokens_per_second", "Written over the last ten seconds.", state.tokens_per_s)
    yield _gauge("potluck_requests_waiting", "Requests that wait for their turn.", state.waiting)
    yield _gauge("potluck_requests_running", "Requests that are read or answered.", state.running)
    yield _gauge("potluck_kv_used_bytes", "Keys and values of running requests.", state.kv_used_bytes)
    yield _gauge("potluck_kv_kept_bytes", "Keys and values kept for later requests.", state.kept_bytes)
    yield _gauge("potluck_kv_budget_bytes", "What both may take.", state.kv_budget_bytes)
    yield from _of_totals(state.totals)
    yield from _of_boxes(state.boxes)


class _StateCollector(Collector):
    def __init__(self, source: StateSource) -> None:
        self._source = source

    def collect(self) -> Iterable[Metric]:
        return metrics_of(self._source.state())


def _of_totals(totals: Totals) -> Iterator[Metric]:
    yield _count("potluck_requests_finished", "Answers by finish reason.", "reason", totals.finished)
    yield _count("potluck_requests_refused", "Requests that were not taken.", "kind", totals.refused)
    yield _sum("potluck_prompt_tokens", "Tokens of prompts, cached ones included.", totals.prompt_tokens)
    yield _sum("potluck_cached_tokens", "Tokens of prompts found in the cache.", totals.cached_tokens)
    yield _sum("potluck_generated_tokens", "Tokens written.", totals.generated_tokens)
    for name, words, counts in (
        ("potluck_drafted_tokens", "Drafts made, by position from 1 on.", totals.drafted),
        ("potluck_accepted_tokens", "Drafts that held, by position from 1 on.", totals.accepted),
    ):
        yield _count(name, words, "position", {str(at): n for at, n in enumerate(counts, start=1)})
    yield _sum("potluck_steps", "Passes of the model.", totals.steps)
    yield _sum("potluck_step_seconds", "Seconds of all passes.", totals.step_s)
    yield _count("potluck_step_part_seconds", "Seconds of passes by part.", "part", totals.step_parts_s)
    for name, words, counted, total_s in (
        ("potluck_first_token_seconds", "To a first token.", totals.first_token_s, totals.first_token_sum_s),
        (
            "potluck_between_tokens_seconds",
            "Between a request's steps.",
            totals.between_tokens_s,
            totals.between_tokens_sum_s,
        ),
        ("potluck_request_seconds", "Of whole requests.", totals.request_s, totals.request_sum_s),
    ):
        yield _histogram(name, words, counted, total_s)


def _of_boxes(boxes: Sequence[BoxState]) -> Iterator[Metric]:
    standing = GaugeMetricFamily(
        "potluck_box_standing", "1, with how a box is.", labels=("box", "node", "standing")
    )
    for box in boxes:
        standing.add_metric((box.name, box.node, box.standing), 1)
    yield standing
    yield _by("potluck_box_experts", "Experts it holds.", "box", {box.name: box.experts for box in boxes})
    yield _by("potluck_box_bytes", "Memory they take.", "box", {box.name: box.num_bytes for box in boxes})
    budgets = {box.name: box.budget_bytes for box in boxes}
    yield _by("potluck_box_budget_bytes", "Memory they may take.", "box", budgets)
    yield _by("potluck_box_load", "Share of what is computed.", "box", {box.name: box.load for box in boxes})
    trips = {box.name: box.round_trip_s for box in boxes if box.round_trip_s is not None}
    yield _by("potluck_box_round_trip_seconds", "Last measured to it.", "box", trips)


def _gauge(name: str, words: str, value: float) -> Metric:
    return GaugeMetricFamily(name, words, value=value)


def _by(name: str, words: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(name, words, labels=(label,))
    for key, value in values.items():
        family.add_metric((key,), value)
    return family


def _sum(name: str, words: str, value: float) -> Metric:
    return CounterMetricFamily(name, words, value=value)


def _count(name: str, words: str, label: str, values: Mapping[str, float]) -> Metric:
    family = CounterMetricFamily(name, words, labels=(label,))
    for key, value in values.items():
        family.add_metric((key,), value)
    return family


def _histogram(name: str, words: str, counted: Histogram, total_s: float) -> Metric:
    """Prometheus counts all up to an edge, ours from edge to edge."""
    buckets, so_far = [], 0
    for edge, count in counted or ((None, 0),):
        so_far += count
        buckets.append(("+Inf" if edge is None else str(float(edge)), float(so_far)))
    return HistogramMetricFamily(name, words, buckets=buckets, sum_value=total_s)
