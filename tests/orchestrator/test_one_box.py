"""All experts in this process: saturated rows, broken weights, and the record of what was chosen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import zmq

from orchestrator.cli.even_plan import even_plan
from orchestrator.generate import GenerationParams
from orchestrator.model.moe import ExpertRunner
from orchestrator.model.routing_recorder import RoutingRecorder
from orchestrator.session import load_local, open_session
from placement.errors import NonFiniteError
from tests.orchestrator.heads import hidden_states, load_model
from tests.orchestrator.plain_experts import plain_model
from tests.tiny_checkpoint import write_random_checkpoint
from transport.expert_rows import ExpertRows
from workers.formats.open_model import open_model

LAYER = 3


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(tmp_path_factory.mktemp("checkpoint"), seed=51)


@pytest.fixture
def experts(model_dir: Path) -> ExpertRunner:
    return load_model(model_dir).experts


def asked(count: int) -> ExpertRows:
    rng = np.random.default_rng(1)
    hidden = rng.standard_normal((count, 64), dtype=np.float32)
    ids = np.stack([rng.permutation(16)[:4] for _ in range(count)]).astype(np.int32)
    weights = rng.random((count, 4), dtype=np.float32)
    return ExpertRows(hidden, ids, weights, np.full(count, -23, np.int32))


def run(experts: ExpertRunner, rows: ExpertRows) -> torch.Tensor:
    return experts.collect(experts.ask(LAYER, rows))


def test_rows_too_large_for_their_grid_are_computed_on_a_coarser_one(experts: ExpertRunner) -> None:
    fitting = asked(5)
    expected = run(experts, fitting)
    # Grids far too fine, each row another: the row must find a coarser one by itself.
    too_fine = fitting._replace(scale_exponents=np.array([-23, -40, -60, -23, -120], np.int32))
    routed = run(experts, too_fine)
    torch.testing.assert_close(routed, expected, rtol=0, atol=4 * 2.0**-23)
    assert torch.equal(routed[0], expected[0])
    for row in range(5):
        assert torch.equal(run(experts, too_fine.at(np.array([row])))[0], routed[row])


@pytest.mark.parametrize("num_rows", [1, 5])
def test_sums_are_those_of_each_row_alone(model_dir: Path, experts: ExpertRunner, num_rows: int) -> None:
    rows = asked(num_rows)
    for exponents in ([-23] * num_rows, [-23, -40, -60, -23, -120][:num_rows], [-60] * num_rows):
        rows = rows._replace(scale_exponents=np.array(exponents, np.int32))
        assert torch.equal(run(experts, rows), run(plain_model(model_dir).experts, rows))


def test_without_workers_there_are_no_sockets(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a socket or a poller without workers")

    monkeypatch.setattr(zmq, "Context", refuse)
    monkeypatch.setattr(zmq, "Poller", refuse)
    model = open_model(model_dir)
    load_local(model, torch.float32)
    with open_session(model, even_plan(model.shape, 0, "float32")) as session:
        assert session.generate([5, 6], GenerationParams(max_tokens=2)).token_ids


def test_output_that_is_not_finite_is_an_error_that_names_the_layer(experts: ExpertRunner) -> None:
    rows = asked(2)
    rows.hidden[1, 0] = float("nan")
    with pytest.raises(NonFiniteError, match=f"layer {LAYER}"):
        run(experts, rows)


def test_the_recorder_counts_what_the_tokens_chose(model_dir: Path) -> None:
    model = load_model(model_dir)
    config = model.config
    model.recorder = RoutingRecorder(config.moe_layers, config.moe_num_experts, config.moe_top_k)
    tokens = torch.randint(320, (30,), generator=torch.Generator().manual_seed(2)).tolist()
    hidden_states(model, tokens, 7)
    trace, counts = model.recorder.trace(), model.recorder.counts()
    assert trace.shape == (30, len(config.moe_layers), 4)
    assert trace.dtype == np.uint16
    assert counts.dtype == np.uint64
    for row in range(len(config.moe_layers)):
        assert np.array_equal(counts[row], np.bincount(trace[:, row].ravel(), minlength=16))
        assert all(len(set(chosen)) == 4 for chosen in trace[:, row].tolist())
    model.recorder = RoutingRecorder(config.moe_layers, config.moe_num_experts, config.moe_top_k)
    hidden_states(model, tokens)
    assert np.array_equal(model.recorder.trace(), trace)
