"""The simulator against the real runtime: it must not get less true."""

from __future__ import annotations

import math
import os
import sys
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.fidelity.gate import run_within
from benchmarks.fidelity.judge import Attempt, judge
from benchmarks.fidelity.layouts import SETUPS, Setup, make_plan
from benchmarks.fidelity.rows import CHUNK_ROWS, chunk_ids
from benchmarks.fidelity.run import Comparison, Model, Probed, Round, Times, check_counts, run_setup
from placement.model_shape import STEP_3_5_FLASH
from placement.replay.tally import DispatchCounts
from tests.orchestrator.processes import DEADLINE_S, MARK, marked, wait_until
from tests.tiny_checkpoint import write_random_checkpoint


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """As the benchmark's, of experts so small that only counts mean something."""
    directory = write_random_checkpoint(
        tmp_path_factory.mktemp("model") / "tiny", seed=0, vocab_size=4096, num_experts=32, top_k=8
    )
    return Model.load(directory)


@pytest.mark.skipif(sys.platform != "linux", reason="the probes read Linux's schedstat")
def test_the_simulator_counts_exactly_what_the_runtime_does(model: Model) -> None:
    """`run_setup` refuses to compare times where one message, row, read or byte differs."""
    setup = next(setup for setup in SETUPS if setup.name == "head and 1 worker")
    result = run_setup(model, setup, rounds=1, tokens=9, repeats=2)
    assert [layout.drafts for layout in result.layouts] == [0, 3]


GOOD, WORSE = Attempt({"one box": 0.03}, others=0.0), Attempt({"one box": -0.2}, others=0.01)
WORSE_ON_A_BUSY_MACHINE = replace(WORSE, others=0.5)


@pytest.mark.parametrize(
    ("attempts", "code"),
    [
        ([GOOD], 0),
        ([WORSE, GOOD], 0),
        ([WORSE, WORSE], 1),
        ([WORSE, WORSE_ON_A_BUSY_MACHINE, WORSE_ON_A_BUSY_MACHINE, WORSE], 1),
        ([WORSE_ON_A_BUSY_MACHINE] * 5 + [GOOD], 0),
    ],
)
def test_predictions_fail_when_they_are_worse_twice_on_a_quiet_machine(
    attempts: list[Attempt], code: int
) -> None:
    left = iter(attempts)
    assert judge(lambda: next(left), {"one box": 0.02, "not attempted": 0.9}) == code
    assert next(left, None) is None


def test_a_judge_that_takes_too_long_is_ended_with_all_that_it_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mark = f"test_fidelity-{os.getpid()}"
    monkeypatch.setenv(MARK, mark)
    assert run_within(("sh", "-c", "exit 3"), DEADLINE_S) == 3
    assert run_within(("sh", "-c", "sleep 600 & sleep 600"), limit_s=1.0) is None
    wait_until(lambda: not marked(mark))


def test_counts_that_differ_in_one_message_are_refused() -> None:
    counted = DispatchCounts((3, 4), (2, 2), 5, 6, 700, 800)
    check_counts("same", counted, counted)
    with pytest.raises(RuntimeError, match=r"one box: the simulator counts .*messages=6.* the dispatcher"):
        check_counts("one box", counted, DispatchCounts((3, 4), (2, 2), 5, 7, 700, 800))


def test_an_error_is_the_median_runs_by_its_own_prediction() -> None:
    compared = Comparison([1.5, 2.2, 2.7], [1.0, 2.0, 3.0])
    assert compared.error == pytest.approx(0.1)
    assert compared.spread == pytest.approx(0.5)


def test_a_round_after_which_the_machine_is_another_is_run_again() -> None:
    def round_(after_s: float, others: float = 0.0) -> Round:
        before, after = ({3: Times(seconds, 1.0)} for seconds in (0.02, after_s))
        # What was probed does not count, what it predicts does.
        return Round(Probed(None, before), {3: Times(0.02, 1.0)}, Probed(None, after), others)  # type: ignore[arg-type]

    assert round_(0.021).drift == pytest.approx(0.05)
    assert round_(0.021).restlessness < 1 < round_(0.024).restlessness
    assert round_(0.016).drift == pytest.approx(0.25)
    assert round_(0.02, others=0.05).restlessness > 1
    assert round_(0.024).predicted(3).decode_s == pytest.approx(0.022)


@pytest.mark.parametrize("setup", SETUPS, ids=lambda setup: setup.name)
def test_a_layouts_plan_gives_each_process_its_share(setup: Setup) -> None:
    plan = make_plan(STEP_3_5_FLASH, setup, 1000)
    plan.check_fits()
    held = plan.experts_per_tier() / STEP_3_5_FLASH.num_routed_experts
    assert held == pytest.approx([share for share in setup.shares if share], abs=0.003)
    assert np.isclose(sum(setup.shares), 1)
    assert plan.local_worker == (0 if setup.shares[0] else None)


def test_there_are_the_layouts_that_were_asked_for() -> None:
    layouts = [(setup, drafts) for setup in SETUPS for drafts in setup.drafts]
    assert len(layouts) >= 8
    assert {setup.num_workers for setup in SETUPS} >= {0, 1, 2, 3, 4}
    assert {drafts for _, drafts in layouts} == {0, 3}
    assert {link for setup in SETUPS for link in setup.links} == {"local", "limited", "delayed"}


def test_a_chunks_rows_ask_a_process_only_for_what_it_holds() -> None:
    shape, held = STEP_3_5_FLASH, set(range(0, 288, 9))
    ids = chunk_ids(shape, held, turn=0)
    assert set(ids[ids >= 0].tolist()) <= held
    assert (ids >= 0).any(axis=1).all()
    # Eight of 288 by lot: a row needs one of 32 with a chance of 1 - C(256, 8) / C(288, 8).
    chance = 1 - math.comb(256, 8) / math.comb(288, 8)
    assert len(ids) / CHUNK_ROWS == pytest.approx(chance, abs=0.1)
    np.testing.assert_array_equal(ids, chunk_ids(shape, held, turn=0))
    assert not np.array_equal(ids, chunk_ids(shape, held, turn=1)[: len(ids)])
