"""Experts move between real workers while a model generates: tokens stay the same, and the plan is true."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from orchestrator.cli.even_plan import even_plan
from orchestrator.generate import GenerationParams
from orchestrator.membership.events import Event, Migrated
from orchestrator.migration.migration import Migration, MigrationLimits, Proposal, Propose
from orchestrator.migration.migrator import Migrator
from orchestrator.migration.online_routing import OnlineRouting
from orchestrator.session import open_session
from placement.holders import HolderTable
from tests.tiny_checkpoint import write_random_checkpoint
from workers.formats.open_model import open_model

PARAMS = GenerationParams(max_tokens=24, ignore_eos=True)
PROMPT = list(range(5, 25))


@pytest.mark.usefixtures("quick_workers")
def test_tokens_stay_the_same_while_all_experts_change_places(tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path, seed=3)
    model = open_model(tmp_path)
    shape = model.shape
    plan = even_plan(shape, 2, "float32")
    table = np.array(plan.holder_table.table[:, :, 0])
    target = HolderTable.from_single(1 - table)
    routing = OnlineRouting(shape.moe_layers, piece_tokens=4)
    told: list[Event] = []
    with open_session(model, plan, positions=64) as session:
        expected = session.generate(PROMPT, PARAMS).token_ids
        assert session.watched is not None
        watch = session.watched.watch
        session.head.recorder = routing
        # Room for 12 of 32 experts at a time: the move takes three steps.
        room = {worker.name: 12 * int(plan.expert_bytes.max()) for worker in plan.workers}
        migration = Migration(MigrationLimits(check_s=0.2, rate_bytes_per_s=0), room, time.monotonic())

        def propose(_: Propose) -> Proposal:
            return Proposal("as the test wants it", target, 0.001, 1.0)

        with (
            ThreadPoolExecutor(1) as apart,
            Migrator(
                migration,
                watch,
                lambda: session.dispatcher.epoch,
                routing,
                propose,
                apart,
                use=lambda moved: "" if watch.change(moved) else "not the next",
                tell=told.append,
                note=lambda _: None,
            ),
        ):
            until_s = time.monotonic() + 120
            while not told and time.monotonic() < until_s:
                assert session.generate(PROMPT, PARAMS).token_ids == expected
        assert any(isinstance(event, Migrated) for event in told)
        now = watch.standing().view.plan
        assert now.epoch > 3
        assert now.holder_table == target
        assert session.generate(PROMPT, PARAMS).token_ids == expected
