"""A session over worker processes of this machine goes on when one is killed, with the same tokens."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import nullcontext
from pathlib import Path

import pytest

from orchestrator.cli.even_plan import even_plan
from orchestrator.generate import GenerationParams
from orchestrator.launch.local import local_workers
from orchestrator.sampling_params import SamplingParams
from orchestrator.session import open_session
from placement.errors import PlanDoesNotFit
from tests.orchestrator.processes import wait_until
from tests.tiny_checkpoint import write_random_checkpoint
from workers.formats.open_model import OpenModel, open_model
from workers.memory import reservations
from workers.memory.budget import Need
from workers.memory.reservations import free_memory, reserve

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_workers")]

PARAMS = GenerationParams(max_tokens=24, sampling=SamplingParams(0.8, seed=3), ignore_eos=True, mtp=2)
PROMPT = [5, 6, 7]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> OpenModel:
    return open_model(write_random_checkpoint(tmp_path_factory.mktemp("model"), seed=3))


@pytest.fixture(scope="module")
def right(model: OpenModel) -> list[int]:
    with open_session(model, even_plan(model.shape, 0, "float32"), num_drafts=2) as session:
        return list(session.generate(PROMPT, PARAMS).token_ids)


@pytest.mark.parametrize("survive", [0, 1])
def test_tokens_go_on_when_a_worker_is_killed(survive: int, model: OpenModel, right: list[int]) -> None:
    """Without another holder, experts come from the files; the worker that is started again is taken back."""
    plan = even_plan(model.shape, 2, "float32", survive=survive)
    said: list[str] = []
    killed: list[int] = []
    with local_workers(plan, model.shape, model.path) as workers:

        def kill(token_ids: list[int]) -> None:
            if not killed:
                killed.append(workers.pids["worker-0"])
                os.kill(killed[0], signal.SIGKILL)

        given = nullcontext(workers)
        with open_session(model, plan, workers=given, num_drafts=2, say=said.append) as session:
            assert list(session.generate(PROMPT, PARAMS, kill).token_ids) == right
            wait_until(lambda: "worker-0" in workers.pids and workers.pids["worker-0"] != killed[0])
            wait_until(lambda: session.report().events["returned"] == 1)
            assert list(session.generate(PROMPT, PARAMS).token_ids) == right
            assert session.report().events["died"] == 1
            assert session.standing().dead == frozenset()
            assert any("worker-0" in line for line in said)
    # One that loads experts behind would be killed at Python's end, within code that ends the process then.
    assert not [thread for thread in threading.enumerate() if thread.name == "holdings"]


def test_a_session_sets_its_memory_aside_and_its_workers_theirs(
    model: OpenModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "reservations"
    monkeypatch.setattr(reservations, "default_folder", lambda: folder)
    with open_session(model, even_plan(model.shape, 0, "bfloat16")):
        assert len(list(folder.glob("*.json"))) == 1
    assert list(folder.glob("*.json")) == []
    nearly_all = free_memory().usable_bytes - 300_000_000
    held = reserve([Need("all", nearly_all)], what="another run", where="here", advice="wait")
    with (
        pytest.raises(PlanDoesNotFit, match=r"^this machine: .* for process \d+ \(another run\)"),
        open_session(model, even_plan(model.shape, 4, "bfloat16"), positions=model.shape.max_positions),
    ):
        pass
    held.close()
