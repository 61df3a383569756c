"""A model ready to generate: the head in this process, experts wherever the plan put them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
import zmq

from orchestrator.dispatch.dispatcher import Dispatcher, unwatched
from orchestrator.dispatch.usage import Usage
from orchestrator.generate import GenerationParams, GenerationResult, OnTokens, generate
from orchestrator.launch.local import local_workers
from orchestrator.launch.workers import Workers
from orchestrator.model.kv_pool import KvPool
from orchestrator.model.step35 import Step35Model
from orchestrator.model.weights import load_head_weights
from orchestrator.one_box import plan_here
from orchestrator.report import RunReport, make_report
from orchestrator.run_memory import Demand, check_run, head_needs
from orchestrator.runnable import check_forms, check_runnable
from orchestrator.timing import StepTimer
from placement.kv_size import KvForm, SequenceSize
from placement.message_size import MAX_MESSAGE_ROWS
from placement.plan import Plan
from placement.weight_format import ExpertFormat
from placement.workload import DEFAULT_CONTEXT
from transport.client import WorkerClient
from transport.keys import HeadKeys
from transport.messages import WireLimits, WorkerState
from transport.sockets import Context
from workers.formats.checkpoint import Checkpoint
from workers.formats.open_model import OpenModel, held_expert_bytes
from workers.memory.free import free_memory
from workers.memory.lost_pages import end_lost_pages_in_one_line
from workers.memory.mapped import OnProgress, Range, bring_in, joined
from workers.pool import load_head_tiers
from workers.tiers import ExpertTier

HELLO_TIMEOUT_S = 10.0


@dataclass(slots=True)
class Session:
    """What `open_session` gives: generate any number of times, then ask for the report."""

    head: Step35Model
    dispatcher: Dispatcher
    plan: Plan
    local: ExpertTier | None
    checkpoint: Checkpoint
    expert_bytes: Mapping[int, int]
    clients: Mapping[str, WorkerClient] = field(default_factory=dict)
    _results: list[GenerationResult] = field(default_factory=list)
    _decode: list[Usage] = field(default_factory=list)

    def generate(
        self, prompt_ids: Sequence[int], params: GenerationParams, on_tokens: OnTokens | None = None
    ) -> GenerationResult:
        """See `orchestrator.generate.generate`.

        Raises:
            CheckpointError: the model's files changed since they were mapped.
        """
        self.checkpoint.check_unchanged()
        before: list[Usage] = []

        def note_first_token(token_ids: list[int]) -> None:
            if not before:
                before.append(self.dispatcher.usage.copy())
            if on_tokens is not None:
                on_tokens(token_ids)

        result = generate(self.head, prompt_ids, params, note_first_token)
        self._results.append(result)
        self._decode.append(self.dispatcher.usage.since(before[0]))
        return result

    def notices(self) -> list[str]:
        """What the user should know of the experts' memory, here and on workers; see `ExpertTier.notices`."""
        found = list(self.local.notices()) if self.local is not None else []
        for name, client in self.clients.items():
            reply = client.hello(HELLO_TIMEOUT_S)
            if reply.state == WorkerState.READY and reply.text:
                found.append(f"worker {name}: {reply.text}")
        return found

    def report(self) -> RunReport:
        """Figures of all generations so far."""
        return make_report(self._results, self.plan, self.dispatcher.usage, self._decode, self.expert_bytes)


@contextmanager
def open_session(
    model: OpenModel,
    plan: Plan,
    *,
    workers: AbstractContextManager[Workers] | None = None,
    num_drafts: int = 0,
    positions: int | None = None,
    kv_form: KvForm | None = None,
    on_progress: OnProgress | None = None,
) -> Iterator[Session]:
    """Start the plan's workers and load the head meanwhile; let go of them on the way out, whatever happens.

    The head's weights are kept in the plan's dtype too.

    Args:
        workers: gives the plan's workers, wherever they run; None starts them all on this machine, for as
            long as the session.
        num_drafts: that a step will ask for at most.
        positions: of the longest text; memory for so many must be free. A usual context where left out.
        kv_form: of keys and values; as the plan assumes where left out, else in its dtype.
        on_progress: told how much of the files is in this process's memory: the head's experts, tier after
            tier, then the rest of the head.

    Raises:
        PlanError: the plan is for another model, or says what this release cannot run.
        PlanDoesNotFit: it takes more than its devices' budgets, or than this machine has free.
        CheckpointError: the checkpoint is damaged, or its MTP layers where drafts are asked for.
        InputError: the checkpoint cannot give so many drafts.
        WorkerStartError: a worker did not start.
    """
    config, checkpoint = model
    shape = model.shape
    plan.check(shape)
    plan.check_fits()
    check_runnable(plan)
    check_forms(plan, checkpoint, config)
    model.contents.check_drafts(num_drafts)
    positions = positions or min(DEFAULT_CONTEXT, shape.max_positions)
    if kv_form is None and plan.workload is not None:
        kv_form = plan.workload.kv_form
    demand = Demand(positions, num_drafts=num_drafts, kv_form=kv_form)
    head = head_needs(model.contents, shape, plan.dtype, demand)
    check_run(plan, head, checkpoint, config, free_memory(), workers_here=workers is None)
    if not plan.asked_workers:
        yield _load(model, plan, demand, on_progress=on_progress)
        return
    with ExitStack() as stack:
        if workers is None:
            workers = local_workers(plan, shape, model.path)
            stack.enter_context(_share_of_cores(1 + len(plan.asked_workers)))
        running = stack.enter_context(workers)
        context = stack.enter_context(_context())

        def connect() -> Mapping[str, WorkerClient]:
            return _clients(running, context, WireLimits.for_shape(shape), plan.dtype)

        yield _load(model, plan, demand, connect, on_progress=on_progress)


@contextmanager
def _context() -> Iterator[Context]:
    context: Context = zmq.Context()
    try:
        yield context
    finally:
        context.destroy(linger=0)


def _clients(running: Workers, context: Context, limits: WireLimits, dtype: str) -> dict[str, WorkerClient]:
    """Wait until all workers are ready, connect, and check that each is who it should be.

    Raises:
        WorkerStartError: a worker did not start, cannot be reached, or is another one.
    """
    addresses = running.wait_ready()
    clients = {}
    for name, address in addresses.items():
        keys = None
        if running.keys is not None and address.public_key is not None:
            keys = HeadKeys(running.keys, address.public_key)
        clients[name] = WorkerClient(context, address.endpoint, limits, name=name, keys=keys)
    for client in clients.values():
        client.hello(HELLO_TIMEOUT_S, dtype=dtype)
    return clients


def load_local(model: OpenModel, dtype: torch.dtype, kv_form: KvForm | None = None) -> Step35Model:
    """Head and all experts in this process, the experts on disk where they do not fit its memory.

    Raises:
        PlanDoesNotFit: not even the head fits.
        CheckpointError: the model's files are damaged.
    """
    demand = Demand(min(DEFAULT_CONTEXT, model.shape.max_positions), kv_form=kv_form)
    plan = plan_here(model, str(dtype).removeprefix("torch."), demand, free_memory()).plan
    return _load(model, plan, demand).head


def _load(
    model: OpenModel,
    plan: Plan,
    demand: Demand,
    connect: Callable[[], Mapping[str, WorkerClient]] = dict,
    *,
    on_progress: OnProgress | None = None,
) -> Session:
    """The head and its own experts, while the workers load theirs; then `connect` waits for those."""
    end_lost_pages_in_one_line()
    config, checkpoint = model
    dtype: torch.dtype = getattr(torch, plan.dtype)
    timer = StepTimer()
    forms = {layer.index: ExpertFormat.of_name(layer.form) for layer in plan.layers}
    expert_bytes = held_expert_bytes(model.contents.expert_formats, forms, config)
    # First what reads next to nothing: norms that are not finite are told before the experts are read.
    weights = load_head_weights(checkpoint, config, dtype, forms=forms, need_mtp=demand.num_drafts > 0)
    local = load_head_tiers(plan, checkpoint, config, on_progress)
    # Before the first token, and in the order of the file, not of the first pass's page faults.
    read = weights.trunk_matrices + (weights.mtp_matrices if demand.num_drafts else ())
    bring_in(joined(Range(matrix.data.data_ptr(), matrix.data.nbytes) for matrix in read), on_progress)
    clients = connect()
    dispatcher = Dispatcher(*unwatched(plan, clients), local=local, max_rows=MAX_MESSAGE_ROWS, timer=timer)
    kv_form = demand.kv_form or KvForm.of(plan.dtype)
    # What was asked for was found to fit before anything was read.
    sequence = SequenceSize.of(model.shape, kv_form, demand.num_drafts)
    asked_bytes = sequence.num_bytes(demand.positions, demand.pass_rows)
    pool = KvPool(max(asked_bytes, free_memory().usable_bytes))
    head = Step35Model(config, weights, dtype, dispatcher, timer, kv_form, pool)
    return Session(head, dispatcher, plan, local, checkpoint, expert_bytes, clients)


@contextmanager
def _share_of_cores(num_processes: int) -> Iterator[None]:
    """Give each process of this machine its share of the cores.

    With more threads than cores, some thread has to wait for a core, and then all threads of its step wait.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, before // num_processes))
    try:
        yield
    finally:
        torch.set_num_threads(before)
