"""A worker process of this machine is killed while a model generates: it is back within seconds."""

from __future__ import annotations

import os
import signal
import time
from contextlib import nullcontext
from pathlib import Path

from orchestrator.cli.even_plan import even_plan
from orchestrator.generate import GenerationParams
from orchestrator.launch.local import local_workers
from orchestrator.session import open_session
from tests.tiny_checkpoint import write_random_checkpoint
from tests.workers.serving import wait_until
from workers.formats.open_model import open_model

PARAMS = GenerationParams(max_tokens=24, ignore_eos=True)
PROMPT = list(range(5, 15))
# A process that imports and loads takes 2 s on a machine with nothing else to do.
BACK_WITHIN_S = 20.0
# A step takes 0.01 s, the interrupted one 0.06 s; three seconds of silence would be death without a replica.
WITHOUT_WAITING_S = 1.0


def test_a_killed_worker_is_started_again_and_taken_back(tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path, seed=3)
    model = open_model(tmp_path)
    plan = even_plan(model.shape, 3, "float32", survive=1)
    with (
        local_workers(plan, model.shape, model.path) as workers,
        open_session(model, plan, workers=nullcontext(workers), positions=64) as session,
    ):
        expected = session.generate(PROMPT, PARAMS).token_ids
        before = workers.pids["worker-1"]
        steps_s: list[float] = []
        killed_s = 0.0
        last_s = time.monotonic()

        def kill_one(_: list[int]) -> None:
            nonlocal killed_s, last_s
            now_s = time.monotonic()
            steps_s.append(now_s - last_s)
            if len(steps_s) == 8:
                killed_s = now_s
                os.kill(before, signal.SIGKILL)
            last_s = time.monotonic()

        assert session.generate(PROMPT, PARAMS, kill_one).token_ids == expected
        # The closed connection is enough to ask others.
        assert max(steps_s[8:]) < WITHOUT_WAITING_S

        def is_back() -> bool:
            assert session.watched is not None
            counts = session.watched.watch.log.counts()
            return counts["died"] == counts["returned"] == 1

        wait_until(is_back)
        assert time.monotonic() - killed_s < BACK_WITHIN_S
        assert workers.pids["worker-1"] != before
        assert session.generate(PROMPT, PARAMS).token_ids == expected
        assert session.standing().dead == frozenset()
