"""A layer's rows leave for every box before any answer is awaited."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import zmq

from orchestrator.dispatch.connections import Connections
from orchestrator.dispatch.dispatcher import Dispatcher, fixed
from orchestrator.dispatch.view import ClusterView, WorkerAddress
from tests.orchestrator.random_plan import random_plan
from tests.tiny_checkpoint import write_random_checkpoint
from transport.client import WorkerClient
from transport.expert_rows import ExpertRows
from transport.messages import ForwardRequest, WireLimits
from transport.wire import decode_request
from workers.model_config import Step35Config

NUM_WORKERS, NUM_ROWS, DEADLINE_MS = 3, 24, 20_000


@pytest.mark.parametrize("max_rows", [64, 5])
def test_every_box_has_its_rows_while_none_has_answered(tmp_path: Path, max_rows: int) -> None:
    write_random_checkpoint(tmp_path, seed=0)
    shape = Step35Config.load(tmp_path).shape("tiny")
    limits = WireLimits.for_shape(shape, max_rows)
    plan = random_plan(shape, NUM_WORKERS, seed=2, head_holds=False)
    rng = np.random.default_rng(0)
    ids = rng.integers(0, shape.num_experts, (NUM_ROWS, shape.top_k), dtype=np.int32)
    rows = ExpertRows(
        rng.standard_normal((NUM_ROWS, shape.hidden_size), dtype=np.float32),
        ids,
        np.full(ids.shape, 0.5, np.float32),
        np.full(NUM_ROWS, -20, np.int32),
    )
    with ExitStack() as stack:
        context: zmq.Context[zmq.Socket[bytes]] = stack.enter_context(zmq.Context())
        boxes, addresses = [], {}
        for worker in plan.asked_workers:
            box = context.socket(zmq.ROUTER)
            stack.callback(box.close, 0)
            box.bind(f"inproc://{worker.name}")
            boxes.append(box)
            index = [one.name for one in plan.workers].index(worker.name)
            addresses[index] = WorkerAddress(f"inproc://{worker.name}", "", None, 0)

        def connect(name: str, address: WorkerAddress) -> WorkerClient:
            return WorkerClient(context, address.endpoint, limits, name=name)

        view = ClusterView(plan, addresses=addresses)
        dispatcher = Dispatcher(fixed(view), Connections(connect), local=None, max_rows=max_rows)
        stack.callback(dispatcher.close)
        # Nobody will ever answer, so this would not return if it waited for anybody.
        dispatcher.ask(shape.moe_layers[0], rows)
        asked = 0
        for box in boxes:
            assert box.poll(DEADLINE_MS)
            while box.poll(0):
                _, *frames = box.recv_multipart()
                request = decode_request(frames, limits)
                assert isinstance(request, ForwardRequest)
                asked += int(np.count_nonzero(request.rows.expert_ids >= 0))
        assert asked == ids.size
