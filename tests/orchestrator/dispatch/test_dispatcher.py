"""Experts behind real services: the same bits as in one process, wherever they live."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import zmq
from safetensors.torch import load_file, save_file

from orchestrator.dispatch.connections import Connections
from orchestrator.dispatch.dispatcher import Dispatcher
from orchestrator.dispatch.view import ClusterView, WorkerAddress
from orchestrator.generate import GenerationParams
from orchestrator.in_process import dispatcher_with_threads
from orchestrator.membership.standing import Standing
from orchestrator.model.step35 import Step35Model
from placement.errors import NonFiniteError, PlanError, WorkerLost
from placement.holders import HolderTable
from placement.patience import Patience
from placement.plan import Plan
from tests.orchestrator.heads import generate_with_hidden, load_model
from tests.orchestrator.plain_experts import plain_model
from tests.orchestrator.random_plan import random_plan
from tests.tiny_checkpoint import write_random_checkpoint
from transport.client import WorkerClient
from transport.messages import WireLimits
from workers.formats.safetensors import SafetensorsCheckpoint
from workers.model_config import Step35Config
from workers.pool import load_tiers
from workers.service import ExpertService
from workers.tiers import tiers_of

PROMPT = [5, 17, 300, 42, 9, 9, 120, 77, 31, 8, 250]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(tmp_path_factory.mktemp("model"), seed=3)


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def reference(model_dir: Path, request: pytest.FixtureRequest) -> tuple[Step35Model, str]:
    model = plain_model(model_dir, request.param)
    return model, fingerprint(model, mtp=0)


def fingerprint(model: Step35Model, mtp: int) -> str:
    """SHA-256 of the generated ids and of the bits of every hidden state."""
    params = GenerationParams(max_tokens=12, mtp=mtp, chunk_size=4)
    result, hidden = generate_with_hidden(model, PROMPT, params)
    # The last step's accepted rows depend on where the text is cut, so compare the rows all runs have.
    rows = hidden[: len(PROMPT) + 11].numpy().tobytes()
    return hashlib.sha256(np.array(result.token_ids).tobytes() + rows).hexdigest()


def over(model: Step35Model, dispatcher: Dispatcher) -> Step35Model:
    return Step35Model(model.config, model.weights, model.dtype, dispatcher, dispatcher.timer)


def threads_of(plan: Plan, model_dir: Path, max_rows: int = 2048) -> AbstractContextManager[Dispatcher]:
    checkpoint, config = SafetensorsCheckpoint.open(model_dir), Step35Config.load(model_dir)
    return dispatcher_with_threads(plan, checkpoint, config, torch.float32, max_rows=max_rows)


@pytest.mark.parametrize(
    ("num_workers", "mtp"),
    [
        (0, 3),
        (1, 0),
        (2, 3),
        (3, 0),
        (7, 3),
        *(pytest.param(*case, marks=pytest.mark.long) for case in ((0, 0), (1, 3), (2, 0), (3, 3), (7, 0))),
    ],
)
def test_ids_and_hidden_states_are_the_same_bits_for_any_placement(
    model_dir: Path, reference: tuple[Step35Model, str], num_workers: int, mtp: int
) -> None:
    model, expected = reference
    checkpoint = SafetensorsCheckpoint.open(model_dir)
    for seed in range(2):
        plan = random_plan(
            model.config.shape("tiny"), num_workers, seed, replicas=0.3 * seed, head_holds=bool(seed)
        )
        with dispatcher_with_threads(
            plan, checkpoint, model.config, model.dtype, wire="tcp" if num_workers == 2 else "inproc"
        ) as dispatcher:
            assert fingerprint(over(model, dispatcher), mtp) == expected


def test_usage_counts_activations_messages_and_bytes(model_dir: Path) -> None:
    model = load_model(model_dir)
    plan = random_plan(model.config.shape("tiny"), 2, seed=4, head_holds=False)
    with threads_of(plan, model_dir) as dispatcher:
        generate_with_hidden(over(model, dispatcher), PROMPT, GenerationParams(max_tokens=6))
        usage = dispatcher.usage
    passes, rows = 1 + 5, len(PROMPT) + 5
    layers, top_k, hidden = 4, 4, 64
    assert sum(usage.activations) == rows * layers * top_k
    assert usage.remote_layers == passes * layers
    assert passes * layers <= usage.messages <= 2 * passes * layers
    assert usage.sent_bytes == usage.received_bytes  # float32 rows out, int32 rows back
    assert rows * layers * hidden * 4 <= usage.sent_bytes <= 2 * rows * layers * hidden * 4


@pytest.mark.parametrize("num_workers", [0, 1, 2])
@pytest.mark.parametrize("head_holds", [False, True])
def test_boxes_of_several_devices_give_the_same_bits(
    model_dir: Path, reference: tuple[Step35Model, str], num_workers: int, head_holds: bool
) -> None:
    model, expected = reference
    for seed in range(2):
        plan = random_plan(
            model.config.shape("tiny"),
            num_workers,
            seed,
            replicas=0.3 * seed,
            head_holds=head_holds,
            devices=2 + seed,
        )
        checkpoint = SafetensorsCheckpoint.open(model_dir)
        with dispatcher_with_threads(plan, checkpoint, model.config, model.dtype) as dispatcher:
            assert fingerprint(over(model, dispatcher), mtp=3) == expected


def test_a_layer_costs_one_message_a_box_and_not_one_a_device(model_dir: Path) -> None:
    model = load_model(model_dir)
    boxed = random_plan(model.config.shape("tiny"), 1, seed=4, head_holds=False, devices=2)
    apart = replace(boxed, tiers=tuple(replace(tier, worker=tier.name) for tier in boxed.tiers))
    messages = []
    for plan in (boxed, apart):
        with threads_of(plan, model_dir) as dispatcher:
            generate_with_hidden(over(model, dispatcher), PROMPT, GenerationParams(max_tokens=6))
            messages.append(dispatcher.usage.messages)
    passes, layers = 1 + 5, 4
    assert messages[0] == passes * layers
    assert messages[1] > messages[0]


@contextmanager
def deaf_box(plan: Plan, model_dir: Path, patience: Patience) -> Iterator[Dispatcher]:
    """A dispatcher whose worker "w0" takes what it is sent and never says anything; "w1" is well."""
    config = Step35Config.load(model_dir)
    limits = WireLimits.for_shape(config.shape("tiny"))
    experts = load_tiers(tiers_of(plan, "w1"), SafetensorsCheckpoint.open(model_dir), config, "float32")
    with ExitStack() as stack:
        context = stack.enter_context(zmq.Context())
        deaf = context.socket(zmq.ROUTER)
        stack.callback(deaf.close, 0)
        deaf.bind("inproc://w0")
        service = ExpertService("w1", experts, limits, "inproc://w1", dtype="float32", context=context)
        stack.enter_context(service)

        def connect(name: str, address: WorkerAddress) -> WorkerClient:
            return WorkerClient(context, address.endpoint, limits, name=name)

        view = ClusterView(
            plan, addresses={i: WorkerAddress(f"inproc://w{i}", "", None, 0) for i in range(2)}
        )
        asked: list[float] = []

        def standing() -> Standing:
            """The deaf worker dies a moment after the first look: as soon as something is asked of it."""
            asked.append(0.0)
            return Standing(view if len(asked) <= 3 else replace(view, absent=frozenset({0})))

        dispatcher = Dispatcher(standing, Connections(connect), local=None, max_rows=2048, patience=patience)
        stack.callback(dispatcher.close)
        yield dispatcher


def test_a_box_lost_within_a_layer_takes_both_its_devices_along(model_dir: Path) -> None:
    model = plain_model(model_dir)
    plan = random_plan(model.config.shape("tiny"), 2, seed=1, head_holds=False, devices=2)
    masks = np.zeros((4, 4, 16), np.bool_)
    masks[0, :, ::2] = masks[1, :, 1::2] = masks[2, :, :9] = masks[3, :, 9:] = True
    # Cheap to ask, so that each device of the box that will be lost is asked for its part.
    tiers = tuple(
        replace(tier, ask_s=1e-6, expert_s=1e-6 if tier.worker == "w0" else 1.0) for tier in plan.tiers
    )
    plan = replace(plan, tiers=tiers, holder_table=HolderTable.from_masks(masks))
    _, expected = generate_with_hidden(model, PROMPT, GenerationParams(max_tokens=3))
    with deaf_box(plan, model_dir, Patience()) as dispatcher:
        _, hidden = generate_with_hidden(over(model, dispatcher), PROMPT, GenerationParams(max_tokens=3))
        usage = dispatcher.usage
    assert torch.equal(hidden, expected)
    layer_passes = 3 * 4
    # The first layer asked the lost box once for all of it, and then the other in its place.
    assert usage.messages == 1 + layer_passes
    assert usage.activations[0] == len(PROMPT) * 4


def test_a_lost_box_whose_experts_nobody_else_holds_is_named(model_dir: Path) -> None:
    model = plain_model(model_dir)
    plan = random_plan(model.config.shape("tiny"), 2, seed=1, head_holds=False, devices=2)
    with (
        deaf_box(plan, model_dir, Patience(view_wait_s=0.05)) as dispatcher,
        pytest.raises(WorkerLost, match=r"layer 2 expert \d+: lost worker 'w0' held it"),
    ):
        generate_with_hidden(over(model, dispatcher), PROMPT, GenerationParams(max_tokens=3))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_only_messages_count_as_wire(model_dir: Path, num_workers: int) -> None:
    model = load_model(model_dir)
    plan = random_plan(model.config.shape("tiny"), num_workers, seed=4)
    with threads_of(plan, model_dir) as dispatcher:
        result, _ = generate_with_hidden(over(model, dispatcher), PROMPT, GenerationParams(max_tokens=6))
    remote = {"wire", "remote_wait"}
    assert remote & set(result.time_s) == (remote if num_workers else set())
    assert result.time_s["dispatch"] > 0


def test_a_chunk_larger_than_a_message_gives_the_same_bits(model_dir: Path) -> None:
    model = plain_model(model_dir)
    params = GenerationParams(max_tokens=2, chunk_size=64)
    _, expected = generate_with_hidden(model, PROMPT, params)
    plan = random_plan(model.config.shape("tiny"), 2, seed=5)
    with threads_of(plan, model_dir, max_rows=3) as dispatcher:
        _, hidden = generate_with_hidden(over(model, dispatcher), PROMPT, params)
    assert torch.equal(hidden, expected)


def test_rows_that_leave_the_grid_are_summed_on_a_coarser_one_everywhere(tmp_path: Path) -> None:
    """Experts 2^20 times larger than their residual saturate; the sum is still the same bits."""
    model_dir = write_random_checkpoint(tmp_path, seed=6)
    rewrite(model_dir, lambda name, tensor: tensor * 2.0**20 if ".moe.down_proj" in name else tensor)
    model = plain_model(model_dir)
    params = GenerationParams(max_tokens=4)
    _, expected = generate_with_hidden(model, PROMPT, params)
    for num_workers in (0, 2):
        plan = random_plan(model.config.shape("tiny"), num_workers, seed=7)
        with threads_of(plan, model_dir) as dispatcher:
            _, hidden = generate_with_hidden(over(model, dispatcher), PROMPT, params)
            assert dispatcher.usage.coarsened_rows > 0
        assert torch.equal(hidden, expected)


def test_weights_that_are_not_finite_are_an_error_that_names_the_layer(tmp_path: Path) -> None:
    model_dir = write_random_checkpoint(tmp_path, seed=8)
    rewrite(model_dir, lambda name, tensor: tensor * float("nan") if "layers.4.moe.down" in name else tensor)
    model = load_model(model_dir)
    plan = random_plan(model.config.shape("tiny"), 1, seed=9)
    with (
        threads_of(plan, model_dir) as dispatcher,
        pytest.raises(NonFiniteError, match="layer 4"),
    ):
        generate_with_hidden(over(model, dispatcher), PROMPT, GenerationParams(max_tokens=2))


def rewrite(model_dir: Path, change: Callable[[str, torch.Tensor], torch.Tensor]) -> None:
    """Change a checkpoint's tensors in place."""
    path = model_dir / "model.safetensors"
    save_file({name: change(name, tensor).contiguous() for name, tensor in load_file(path).items()}, path)


def test_a_plan_for_another_model_is_refused(model_dir: Path, tmp_path: Path) -> None:
    other = Step35Config.load(write_random_checkpoint(tmp_path, seed=1, num_experts=8)).shape("other")
    with (
        pytest.raises(PlanError, match="plan for another model"),
        threads_of(random_plan(other, 1, 0), model_dir),
    ):
        pass
