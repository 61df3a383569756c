"""A worker from its spec, in this process and without Ray."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import torch
import zmq

from models.tiny.gguf_file import write_gguf
from placement.errors import CheckpointError, KeysRequired, PlanError, WorkerStartError
from tests.orchestrator.processes import wait_until
from tests.tiny_checkpoint import write_random_checkpoint
from transport.client import WorkerClient
from transport.expert_rows import ExpertRows
from transport.keys import HeadKeys, KeyPair
from transport.messages import (
    Drop,
    ErrorCode,
    ErrorReply,
    ForwardReply,
    Hello,
    Hold,
    WireLimits,
    WorkerState,
)
from workers.formats.safetensors import SafetensorsCheckpoint
from workers.model_config import Step35Config
from workers.process import WorkerProcess, how_to_copy
from workers.spec import WorkerInfo, WorkerSpec
from workers.store import ExpertStore, in_one_form
from workers.tiers import StillLoading, TierSpec

DEADLINE_S = 20.0
R = TypeVar("R")
EXPERTS: Mapping[int, tuple[int, ...]] = {2: (0, 3, 7), 5: (1,)}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(tmp_path_factory.mktemp("model"), seed=3)


@pytest.fixture
def spec(model_dir: Path) -> WorkerSpec:
    return WorkerSpec(
        name="w",
        model="tiny",
        limits=WireLimits.for_shape(Step35Config.load(model_dir).shape("tiny")),
        tiers=(TierSpec("w", "ram", "cpu", EXPERTS),),
        forms={},
        dtype="float32",
        model_dir=str(model_dir),
        endpoint="tcp://127.0.0.1:*",
        pulse_endpoint="tcp://127.0.0.1:*",
    )


@contextmanager
def started(spec: WorkerSpec) -> Iterator[tuple[WorkerProcess, WorkerInfo]]:
    worker = WorkerProcess(spec)
    try:
        worker.bind()
        yield worker, worker.load()
    finally:
        worker.stop()


def asks(
    info: WorkerInfo, spec: WorkerSpec, keys: HeadKeys | None = None, expected: type[R] = ForwardReply
) -> R:
    """The worker's answer for one row of ones, expert 3 of layer 2."""
    shape = Step35Config.load(Path(spec.model_dir)).shape("tiny")
    with zmq.Context() as context:
        client = WorkerClient(context, info.endpoint, spec.limits, name="w", keys=keys)
        try:
            client.hello(DEADLINE_S, dtype=spec.dtype)
            expert_ids = np.full((1, shape.top_k), -1, np.int32)
            expert_ids[0, 0] = 3
            hidden = np.ones((1, shape.hidden_size), np.float32)
            weights = np.ones((1, shape.top_k), np.float32)
            exponents = np.array([-18], np.int32)
            client.send_forward(1, 0, 2, ExpertRows(hidden, expert_ids, weights, exponents))
            reply = client.wait(DEADLINE_S)
        finally:
            client.close()
    assert isinstance(reply, expected), reply
    return reply


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_worker_serves_the_experts_of_its_spec(spec: WorkerSpec, dtype: str) -> None:
    spec = replace(spec, dtype=dtype)
    with started(spec) as (worker, info):
        reply = asks(info, spec)
        assert worker.state == WorkerState.READY
    config = Step35Config.load(Path(spec.model_dir))
    formats = in_one_form(EXPERTS, getattr(torch, dtype))
    checkpoint = SafetensorsCheckpoint.open(Path(spec.model_dir))
    store = ExpertStore.load(checkpoint, config, EXPERTS, formats=formats)
    expert_ids = np.full((1, config.moe_top_k), -1, np.int32)
    expert_ids[0, 0] = 3
    hidden, weights = np.ones((1, config.hidden_size), np.float32), np.ones(expert_ids.shape, np.float32)
    right = store.forward(2, ExpertRows(hidden, expert_ids, weights, np.array([-18], np.int32)))
    np.testing.assert_array_equal(reply.values, right.values)
    assert (info.num_experts, info.held_bytes) == (4, store.held_bytes)


def test_a_worker_takes_a_gguf_file(spec: WorkerSpec, tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(Path(spec.model_dir), path, "f32")
    answers = []
    for model in (spec.model_dir, str(path)):
        with started(replace(spec, model_dir=model)) as (_, info):
            answers.append((asks(info, spec).values.tolist(), info.held_bytes))
    assert answers[0] == answers[1]


def test_a_worker_keeps_the_plans_forms_or_refuses_a_file_that_has_others(
    spec: WorkerSpec, tmp_path: Path
) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(Path(spec.model_dir), path, "q8_0")
    spec = replace(spec, model_dir=str(path))
    expected = r"ffn_gate_exps\.weight is stored as q8_0, expected float32"
    with pytest.raises(CheckpointError, match=expected), started(spec):
        pass
    forms = dict.fromkeys(range(2, 8), "q8_0")
    tiers = tuple(replace(tier, forms=forms) for tier in spec.tiers)
    with started(replace(spec, tiers=tiers, forms=forms)) as (_, info):
        pass
    # Three matrices of 32 x 64 weights, 34 bytes for 32 of them.
    assert info.held_bytes == 4 * 3 * 32 * 64 // 32 * 34


def test_a_worker_of_two_tiers_is_one_process_that_tells_their_sum(spec: WorkerSpec) -> None:
    halves = (TierSpec("w-a", "ram", "cpu", {2: (0, 3)}), TierSpec("w-b", "ram", "cpu", {2: (3, 7), 5: (1,)}))
    with started(spec) as (_, whole), started(replace(spec, tiers=halves)) as (_, both):
        np.testing.assert_array_equal(asks(whole, spec).values, asks(both, spec).values)
    assert both.num_experts == 4
    assert both.held_bytes == whole.held_bytes // 4 * 5


def test_a_worker_with_the_heads_key_makes_its_own_and_tells_only_the_public_half(spec: WorkerSpec) -> None:
    head = KeyPair.make()
    anywhere = "tcp://0.0.0.0:*"
    spec = replace(spec, endpoint=anywhere, pulse_endpoint=anywhere, allowed=(head.public,))
    with started(spec) as (_, info):
        assert info.public_key is not None
        info = replace(info, endpoint=info.endpoint.replace("0.0.0.0", "127.0.0.1"))
        assert asks(info, spec, HeadKeys(head, info.public_key)).request_id == 1


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model_dir": "/no/such/model"}, CheckpointError, "/no/such/model"),
        ({"identity": "0" * 64}, WorkerStartError, "worker w on .*: .* are other files .* expected 000000"),
        ({"tiers": (TierSpec("w", "ram", "cpu", {0: (1,)}),)}, PlanError, "layer 0"),
        (
            {"tiers": (TierSpec("w", "ram", "cpu", EXPERTS), TierSpec("w-gpu", "vram", "cpu", EXPERTS))},
            WorkerStartError,
            "device 'w-gpu': its experts are in vram on device 'cpu', .*: plan with",
        ),
        (
            {"tiers": (TierSpec("w", "vram", "cpu", EXPERTS),)},
            WorkerStartError,
            "^its experts are in vram",
        ),
    ],
)
def test_a_spec_that_cannot_be_served_says_why(
    spec: WorkerSpec, changes: dict[str, object], error: type[Exception], message: str
) -> None:
    worker = WorkerProcess(replace(spec, **changes))  # type: ignore[arg-type]
    try:
        worker.bind()
        with pytest.raises(error, match=message):
            worker.load()
        said = worker.greet(Hello(1, 2))
        assert (said.state, said.num_experts) == (WorkerState.FAILED, 0)
        assert re.search(message, said.text)
    finally:
        worker.stop()


def test_a_model_of_another_shape_is_named(spec: WorkerSpec) -> None:
    limits = replace(spec.limits, fingerprint="0" * 16)
    expected = r"^worker w on .* has fingerprint .*, expected 0000000000000000, that of the plan$"
    with pytest.raises(WorkerStartError, match=expected), started(replace(spec, limits=limits)):
        pass


def test_a_box_without_the_model_says_how_to_get_it_there(spec: WorkerSpec) -> None:
    """Only where it is another box than the head's: its endpoint tells."""
    assert how_to_copy("/models/m", "tcp://127.0.0.1:*") == how_to_copy("/models/m", "ipc:///run/w") == ""
    assert how_to_copy("/models/m", "tcp://10.0.0.2:*").endswith(": rsync -aP /models/m 10.0.0.2:/models/")
    spec = replace(spec, model_dir="/no/such/model")
    expected = r"^worker w on .*: /no/such/model: no such file"
    with pytest.raises(CheckpointError, match=expected), started(spec):
        pass


@pytest.mark.parametrize("which", ["endpoint", "pulse_endpoint"])
def test_no_socket_is_open_to_other_machines_without_keys(spec: WorkerSpec, which: str) -> None:
    worker = WorkerProcess(replace(spec, **{which: "tcp://0.0.0.0:*"}))  # type: ignore[arg-type]
    with pytest.raises(KeysRequired, match="no keys"):
        worker.bind()
    worker.stop()


def test_a_worker_answers_before_it_has_loaded(spec: WorkerSpec) -> None:
    worker = WorkerProcess(spec)
    try:
        info = worker.bind()
        assert worker.greet(Hello(1, 2)).state == WorkerState.LOADING
        reply = asks(info, spec, expected=ErrorReply)
        assert isinstance(reply, ErrorReply)
        assert reply.code == ErrorCode.LOADING
        with pytest.raises(StillLoading):
            worker.obey(Hold(1, 1, {2: (1,)}, 0))
        loaded = worker.load()
        assert (loaded.instance, loaded.endpoint) == (info.instance, info.endpoint)
        assert isinstance(asks(info, spec), ForwardReply)
    finally:
        worker.stop()


def test_orders_reach_what_is_held(spec: WorkerSpec) -> None:
    with started(spec) as (worker, _):
        assert not worker.obey(Hold(1, 7, {2: (5,)}, 0)).done
        wait_until(lambda: worker.changes == 1)
        again = worker.obey(Hold(2, 7, {2: (5,)}, 0))
        assert (again.request_id, again.order, again.done, again.missing_bytes) == (2, 7, True, 0)
        assert worker.info().num_experts == 5
        worker.obey(Drop(3, 8, {2: (5, 3)}))
        wait_until(lambda: worker.changes == 2)
        assert worker.info().num_experts == 3


def test_a_spec_survives_its_json(spec: WorkerSpec) -> None:
    keys = KeyPair.make()
    whole = replace(spec, keys=keys, allowed=(keys.public,), forms={2: "q8_0"}, linger_s=1.5)
    line = whole.to_json()
    assert "\n" not in line
    assert WorkerSpec.from_json(line) == whole
    for broken in ("", "{}", "[1]", line[:-1], line.replace('"dtype"', '"dtyp"')):
        with pytest.raises(WorkerStartError, match=r"^a worker's spec on standard input") as caught:
            WorkerSpec.from_json(broken)
        assert keys.secret.decode() not in str(caught.value)


def test_making_a_spec_needs_neither_torch_nor_ray() -> None:
    program = "import sys, workers.process; sys.exit(bool({'torch', 'ray'} & set(sys.modules)))"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", program], cwd=root, check=False, timeout=60).returncode == 0
