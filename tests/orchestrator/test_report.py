"""The figures of several generations together."""

from __future__ import annotations

from pathlib import Path

from orchestrator.dispatch.usage import Usage
from orchestrator.generate import GenerationResult
from orchestrator.report import make_report
from tests.orchestrator.random_plan import random_plan
from tests.tiny_checkpoint import write_random_checkpoint
from workers.model_config import Step35Config


def test_generations_with_more_and_with_fewer_drafts_are_added_up(tmp_path: Path) -> None:
    shape = Step35Config.load(write_random_checkpoint(tmp_path, seed=3)).shape("tiny")
    plan = random_plan(shape, 1, seed=4)
    results = [
        GenerationResult((1, 2), "length", 1, (), (), 1.0, 2.0),
        GenerationResult((1, 2, 3), "length", 2, (2, 1), (1, 1), 1.0, 2.0),
        GenerationResult((1, 2), "length", 1, (1,), (0,), 1.0, 2.0),
    ]
    usage = Usage([0] * len(plan.workers))
    sizes = {layer.index: layer.expert_bytes for layer in plan.layers}
    report = make_report(results, plan, usage, [usage] * 3, sizes)
    assert report.drafted_by_position == (3, 1)
    assert report.accepted_by_position == (1, 1)
    assert (report.num_tokens, report.steps) == (7, 4)
