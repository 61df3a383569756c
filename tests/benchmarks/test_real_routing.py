"""Traces made from published counts have exactly those counts."""

from __future__ import annotations

import numpy as np

from benchmarks.studies.real_routing import OLMOE_ON_STEP, as_tokens, olmoe
from placement.given.stats import count_experts
from placement.interop.count_tables import read_count_tables
from tests.placement.real_routing import FIXTURES


def test_a_documents_counts_come_back_and_no_token_chooses_twice() -> None:
    counts = read_count_tables(FIXTURES / "olmoe-coding.npz", OLMOE_ON_STEP)[0]
    trace = as_tokens(counts, OLMOE_ON_STEP.top_k, np.random.default_rng(0))
    assert (count_experts(trace, OLMOE_ON_STEP.num_experts) == counts).all()
    assert (np.diff(np.sort(trace, axis=2), axis=2) > 0).all()


def test_documents_are_planned_on_or_held_out_never_both() -> None:
    routing = olmoe("general")
    assert routing.planned.num_tokens + len(routing.held_out) == 100 * 64
    total = routing.planned.counts + count_experts(routing.held_out, OLMOE_ON_STEP.num_experts)
    whole = read_count_tables(FIXTURES / "olmoe-general.npz", OLMOE_ON_STEP).sum(axis=0)
    assert (total == whole).all()
