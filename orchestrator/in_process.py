"""A plan's workers as threads of this process: the same service, sockets and messages, without Ray."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Literal

import torch
import zmq

from orchestrator.dispatch.connections import Connections
from orchestrator.dispatch.dispatcher import Dispatcher, fixed
from orchestrator.dispatch.view import ClusterView, WorkerAddress
from orchestrator.timing import StepTimer
from placement.message_size import MAX_MESSAGE_ROWS
from placement.plan import Plan, planned_layers
from transport.client import WorkerClient
from transport.messages import WireLimits, random_id
from transport.sockets import Context
from workers.formats.checkpoint import Checkpoint
from workers.formats.open_model import kept_forms
from workers.model_config import Step35Config
from workers.pool import load_head_tiers, load_tiers
from workers.service import ExpertService
from workers.tiers import tiers_of

HELLO_TIMEOUT_S = 10.0


@contextmanager
def dispatcher_with_threads(
    plan: Plan,
    checkpoint: Checkpoint,
    config: Step35Config,
    dtype: torch.dtype,
    *,
    timer: StepTimer | None = None,
    wire: Literal["inproc", "tcp"] = "inproc",
    max_rows: int = MAX_MESSAGE_ROWS,
) -> Iterator[Dispatcher]:
    """A dispatcher over one service a planned worker; worker "head" computes in the caller's thread.

    Raises:
        PlanError: the plan is for another model.
        CheckpointError: a tensor is missing or of another shape.
    """
    shape = config.shape(plan.model)
    plan.check(shape)
    limits = WireLimits.for_shape(shape, max_rows)
    name = str(dtype).removeprefix("torch.")
    layers = planned_layers(shape, kept_forms(checkpoint, config, name))
    plan = replace(plan, layers=layers, dtype=name)
    with ExitStack() as stack:
        context: Context = stack.enter_context(zmq.Context())
        local = load_head_tiers(plan, checkpoint, config)
        addresses = {}
        indices = {worker.name: index for index, worker in enumerate(plan.workers)}
        for worker in plan.asked_workers:
            experts = load_tiers(tiers_of(plan, worker.name), checkpoint, config, name)
            endpoint = "tcp://127.0.0.1:*" if wire == "tcp" else f"inproc://{worker.name}"
            service = ExpertService(worker.name, experts, limits, endpoint, dtype=name, context=context)
            stack.enter_context(service)
            addresses[indices[worker.name]] = WorkerAddress(service.endpoint, "", None, 0)
        session = random_id()

        def connect(worker: str, address: WorkerAddress) -> WorkerClient:
            client = WorkerClient(context, address.endpoint, limits, name=worker, session=session)
            client.hello(HELLO_TIMEOUT_S, dtype=name)
            return client

        view = ClusterView(plan, addresses=addresses)
        dispatcher = Dispatcher(
            fixed(view), Connections(connect), local=local, max_rows=max_rows, timer=timer
        )
        stack.callback(dispatcher.close)
        yield dispatcher
