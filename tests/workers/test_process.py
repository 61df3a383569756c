"""A worker from its spec, in this process and without Ray."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import zmq

from models.tiny.gguf_file import write_gguf
from placement.errors import CheckpointError, KeysRequired, PlanError, WorkerStartError
from tests.tiny_checkpoint import write_random_checkpoint
from transport.client import WorkerClient
from transport.expert_rows import ExpertRows
from transport.keys import HeadKeys, KeyPair
from transport.messages import ForwardReply, WireLimits
from workers.formats.safetensors import SafetensorsCheckpoint
from workers.model_config import Step35Config
from workers.process import WorkerInfo, WorkerProcess, WorkerSpec
from workers.store import ExpertStore, in_one_form
from workers.tiers import TierSpec

DEADLINE_S = 20.0
EXPERTS: Mapping[int, tuple[int, ...]] = {2: (0, 3, 7), 5: (1,)}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(tmp_path_factory.mktemp("model"), seed=3)


@pytest.fixture
def spec(model_dir: Path) -> WorkerSpec:
    return WorkerSpec(
        name="w",
        model="tiny",
        fingerprint=Step35Config.load(model_dir).shape("tiny").fingerprint,
        epoch=2,
        model_dir=str(model_dir),
        tiers=(TierSpec("w", "ram", "cpu", EXPERTS),),
        dtype="float32",
        endpoint="tcp://127.0.0.1:*",
    )


def asks(info: WorkerInfo, spec: WorkerSpec, keys: HeadKeys | None = None) -> ForwardReply:
    """The worker's answer for one row of ones, expert 3 of layer 2."""
    shape = Step35Config.load(Path(spec.model_dir)).shape("tiny")
    with zmq.Context() as context:
        limits = WireLimits.for_shape(shape)
        client = WorkerClient(context, info.endpoint, limits, name="w", keys=keys)
        try:
            client.hello(DEADLINE_S, dtype=spec.dtype)
            expert_ids = np.full((1, shape.top_k), -1, np.int32)
            expert_ids[0, 0] = 3
            hidden = np.ones((1, shape.hidden_size), np.float32)
            weights = np.ones((1, shape.top_k), np.float32)
            exponents = np.array([-18], np.int32)
            client.send_forward(1, spec.epoch, 2, ExpertRows(hidden, expert_ids, weights, exponents))
            reply = client.wait(DEADLINE_S)
        finally:
            client.close()
    assert isinstance(reply, ForwardReply), reply
    return reply


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_worker_serves_the_experts_of_its_spec(spec: WorkerSpec, dtype: str) -> None:
    spec = replace(spec, dtype=dtype)
    worker = WorkerProcess(spec)
    info = worker.start()
    try:
        reply = asks(info, spec)
        health = worker.health()
    finally:
        worker.stop()
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
    assert (health.running, health.served, health.num_experts) == (True, 1, 4)


def test_a_worker_takes_a_gguf_file(spec: WorkerSpec, tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(Path(spec.model_dir), path, "f32")
    answers = []
    for model in (spec.model_dir, str(path)):
        worker = WorkerProcess(replace(spec, model_dir=model))
        info = worker.start()
        try:
            answers.append((asks(info, spec).values.tolist(), info.held_bytes))
        finally:
            worker.stop()
    assert answers[0] == answers[1]


def test_a_worker_keeps_the_plans_forms_or_refuses_a_file_that_has_others(
    spec: WorkerSpec, tmp_path: Path
) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(Path(spec.model_dir), path, "q8_0")
    spec = replace(spec, model_dir=str(path))
    with pytest.raises(CheckpointError, match=r"ffn_gate_exps\.weight is stored as q8_0, expected float32"):
        WorkerProcess(spec).start()
    tiers = tuple(replace(tier, forms=dict.fromkeys(EXPERTS, "q8_0")) for tier in spec.tiers)
    worker = WorkerProcess(replace(spec, tiers=tiers))
    info = worker.start()
    worker.stop()
    # Three matrices of 32 x 64 weights, 34 bytes for 32 of them.
    assert info.held_bytes == 4 * 3 * 32 * 64 // 32 * 34


def test_a_worker_of_two_tiers_is_one_process_that_tells_their_sum(spec: WorkerSpec) -> None:
    halves = (TierSpec("w-a", "ram", "cpu", {2: (0, 3)}), TierSpec("w-b", "ram", "cpu", {2: (3, 7), 5: (1,)}))
    one, two = WorkerProcess(spec), WorkerProcess(replace(spec, tiers=halves))
    try:
        replies = [asks(worker.start(), spec) for worker in (one, two)]
        whole, both = one.health(), two.health()
    finally:
        one.stop()
        two.stop()
    np.testing.assert_array_equal(replies[0].values, replies[1].values)
    assert (both.served, both.num_experts) == (1, 5)
    assert both.held_bytes == whole.held_bytes // 4 * 5


def test_a_worker_with_the_heads_key_makes_its_own_and_tells_only_the_public_half(spec: WorkerSpec) -> None:
    head = KeyPair.make()
    spec = replace(spec, endpoint="tcp://0.0.0.0:*", head_public=head.public)
    worker = WorkerProcess(spec)
    info = worker.start()
    try:
        assert info.public_key is not None
        info = replace(info, endpoint=info.endpoint.replace("0.0.0.0", "127.0.0.1"))
        assert asks(info, spec, HeadKeys(head, info.public_key)).request_id == 1
    finally:
        worker.stop()


def test_a_stopped_worker_has_no_health_and_may_be_stopped_again(spec: WorkerSpec) -> None:
    worker = WorkerProcess(spec)
    with pytest.raises(WorkerStartError, match="not started"):
        worker.health()
    worker.start()
    worker.stop()
    worker.stop()
    with pytest.raises(WorkerStartError, match="not started"):
        worker.health()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model_dir": "/no/such/model"}, CheckpointError, "/no/such/model"),
        ({"fingerprint": "0" * 16}, WorkerStartError, "the plan is for 0000000000000000"),
        ({"tiers": (TierSpec("w", "ram", "cpu", {0: (1,)}),)}, PlanError, "layer 0"),
        (
            {"tiers": (TierSpec("w", "ram", "cpu", EXPERTS), TierSpec("w-gpu", "vram", "cuda:7", EXPERTS))},
            WorkerStartError,
            "device 'w-gpu': its experts are in vram on device 'cuda:7', .*: plan with",
        ),
        (
            {"tiers": (TierSpec("w", "vram", "cpu", EXPERTS),)},
            WorkerStartError,
            "^its experts are in vram",
        ),
        ({"endpoint": "tcp://0.0.0.0:*"}, KeysRequired, "no keys"),
    ],
)
def test_a_spec_that_cannot_be_served_says_why(
    spec: WorkerSpec, changes: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        WorkerProcess(replace(spec, **changes)).start()  # type: ignore[arg-type]


def test_making_a_spec_needs_neither_torch_nor_ray() -> None:
    program = "import sys, workers.process; sys.exit(bool({'torch', 'ray'} & set(sys.modules)))"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", program], cwd=root, check=False, timeout=60).returncode == 0
