"""What boxes can take on: as fast as their disks were measured, as much as the plan leaves free."""

from __future__ import annotations

from pathlib import Path

from orchestrator.launch.watched import DISK_BYTES_PER_S, room_elsewhere
from placement.plan import LOCAL_WORKER
from tests.orchestrator.random_plan import random_plan
from tests.tiny_checkpoint import write_random_checkpoint
from workers.model_config import Step35Config


def test_disks_count_as_they_were_measured_and_others_as_the_slowest_of_them(tmp_path: Path) -> None:
    shape = Step35Config.load(write_random_checkpoint(tmp_path, seed=3)).shape("tiny")
    plan = random_plan(shape, 3, seed=4)
    first, second, *_ = (worker.name for worker in plan.asked_workers)
    unmeasured = room_elsewhere(plan, 5)
    assert {box.disk_bytes_per_s for box in unmeasured.values()} == {DISK_BYTES_PER_S}
    room = room_elsewhere(plan, 5, {first: 3e9, LOCAL_WORKER: 2e8})
    assert (room[first].disk_bytes_per_s, room[LOCAL_WORKER].disk_bytes_per_s) == (3e9, 2e8)
    assert room[second].disk_bytes_per_s == 2e8
    assert [box.free_bytes for box in room.values()] == [box.free_bytes for box in unmeasured.values()]
