"""A model ready to generate: the head in this process, experts wherever the plan put them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from orchestrator.dispatch.dispatcher import Dispatcher, unwatched
from orchestrator.dispatch.usage import Usage
from orchestrator.generate import GenerationParams, GenerationResult, OnTokens, generate
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
from workers.formats.checkpoint import Checkpoint
from workers.formats.open_model import OpenModel, held_expert_bytes
from workers.memory.free import free_memory
from workers.memory.lost_pages import end_lost_pages_in_one_line
from workers.memory.mapped import OnProgress, Range, bring_in, joined
from workers.pool import load_head_tiers
from workers.tiers import ExpertTier

if TYPE_CHECKING:
    from orchestrator.launch.ray_workers import RunningWorkers


@dataclass(slots=True)
class Session:
    """What `open_session` gives: generate any number of times, then ask for the report."""

    head: Step35Model
    dispatcher: Dispatcher
    plan: Plan
    local: ExpertTier | None
    checkpoint: Checkpoint
    expert_bytes: Mapping[int, int]
    workers: RunningWorkers | None = None
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
        for name, health in (self.workers.health() if self.workers is not None else {}).items():
            if health is not None:
                found += [f"worker {name}: {notice}" for notice in health.notices]
        return found

    def report(self) -> RunReport:
        """Figures of all generations so far."""
        return make_report(self._results, self.plan, self.dispatcher.usage, self._decode, self.expert_bytes)


@contextmanager
def open_session(
    model: OpenModel,
    plan: Plan,
    *,
    ray_address: str | None = None,
    num_drafts: int = 0,
    positions: int | None = None,
    kv_form: KvForm | None = None,
    on_progress: OnProgress | None = None,
) -> Iterator[Session]:
    """Start the plan's workers and load the head meanwhile; stop them on the way out, whatever happens.

    The head's weights are kept in the plan's dtype too.

    Args:
        ray_address: of a running Ray cluster; None starts Ray, and all of the plan's workers, on this machine
            for as long as the session.
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
    check_run(plan, head, checkpoint, config, free_memory(), workers_here=ray_address is None)
    num_workers = len(plan.asked_workers)
    if not num_workers:
        yield _load(model, plan, demand, on_progress=on_progress)
        return
    # Ray takes seconds to import.
    from orchestrator.launch.ray_workers import RayCluster

    with ExitStack() as stack:
        cluster = stack.enter_context(RayCluster(ray_address))
        if ray_address is None:
            stack.enter_context(_share_of_cores(1 + num_workers))
        running = cluster.start_workers(plan, shape, model.path)
        session = _load(model, plan, demand, running.connect, on_progress=on_progress)
        session.workers = running
        yield session


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
    dispatcher = Dispatcher(*unwatched(plan, connect()), local=local, max_rows=MAX_MESSAGE_ROWS, timer=timer)
    kv_form = demand.kv_form or KvForm.of(plan.dtype)
    # What was asked for was found to fit before anything was read.
    sequence = SequenceSize.of(model.shape, kv_form, demand.num_drafts)
    asked_bytes = sequence.num_bytes(demand.positions, demand.pass_rows)
    pool = KvPool(max(asked_bytes, free_memory().usable_bytes))
    head = Step35Model(config, weights, dtype, dispatcher, timer, kv_form, pool)
    return Session(head, dispatcher, plan, local, checkpoint, expert_bytes)


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
