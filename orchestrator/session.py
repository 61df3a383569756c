"""A model ready to generate: the head in this process, experts wherever the plan put them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from orchestrator.cluster import RayCluster, RunningWorkers
from orchestrator.dispatch import Dispatcher, Usage
from orchestrator.generate import GenerationParams, GenerationResult, OnTokens, generate
from orchestrator.model.moe import LocalExperts
from orchestrator.model.step35 import Step35Model
from orchestrator.model.weights import check_drafts, load_head_weights
from orchestrator.report import RunReport, make_report
from orchestrator.runnable import check_runnable
from orchestrator.timing import StepTimer
from placement.message_size import MAX_MESSAGE_ROWS
from placement.plan import LOCAL_WORKER, Plan
from workers.formats.safetensors import SafetensorsCheckpoint
from workers.model_config import Step35Config
from workers.store import ExpertStore


def load_local(model_dir: Path, dtype: torch.dtype) -> Step35Model:
    """Head and all experts in this process, without workers.

    Raises:
        CheckpointError: the directory is not a checkpoint of this architecture, or is damaged.
    """
    config = Step35Config.load(model_dir)
    checkpoint = SafetensorsCheckpoint.open(model_dir)
    timer = StepTimer()
    experts = LocalExperts.load(checkpoint, config, dtype, timer)
    return Step35Model.load(checkpoint, config, dtype, experts, timer)


@dataclass(slots=True)
class Session:
    """What `open_session` gives: generate any number of times, then ask for the report."""

    head: Step35Model
    dispatcher: Dispatcher
    plan: Plan
    _results: list[GenerationResult] = field(default_factory=list)
    _decode: list[Usage] = field(default_factory=list)

    def generate(
        self, prompt_ids: Sequence[int], params: GenerationParams, on_tokens: OnTokens | None = None
    ) -> GenerationResult:
        """See `orchestrator.generate.generate`."""
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

    def report(self) -> RunReport:
        """Figures of all generations so far."""
        return make_report(self._results, self.plan, self.dispatcher.usage, self._decode)


@contextmanager
def open_session(
    model_dir: Path,
    plan: Plan,
    *,
    ray_address: str | None = None,
    addresses: Mapping[str, str] | None = None,
    num_drafts: int = 0,
) -> Iterator[Session]:
    """Start the plan's workers and load the head meanwhile; stop them on the way out, whatever happens.

    The head's weights and caches are kept in the plan's dtype too.

    Args:
        ray_address: of a running Ray cluster; None starts Ray on this machine for as long as the session.
        addresses: of the plan's nodes, where Ray does not know them by name.
        num_drafts: that a step will ask for at most.

    Raises:
        PlanError: the plan is for another model, does not fit, or says what this release cannot run.
        CheckpointError: the checkpoint is damaged.
        InputError: the checkpoint cannot give so many drafts.
        WorkerStartError: a worker did not start.
    """
    config = Step35Config.load(model_dir)
    shape = config.shape(model_dir.resolve().name)
    plan.check(shape)
    plan.check_fits()
    check_runnable(plan)
    dtype: torch.dtype = getattr(torch, plan.dtype)
    checkpoint = SafetensorsCheckpoint.open(model_dir)
    check_drafts(checkpoint, config, num_drafts)
    timer = StepTimer()
    with ExitStack() as stack:
        running: RunningWorkers | None = None
        num_workers = len(plan.asked_workers)
        if num_workers:
            cluster = stack.enter_context(RayCluster(ray_address))
            if ray_address is None:
                stack.enter_context(_share_of_cores(1 + num_workers))
            running = cluster.start_workers(plan, shape, model_dir, addresses=addresses)
        local = None
        if plan.local_worker is not None:
            local = ExpertStore.load(checkpoint, config, plan.experts_of(LOCAL_WORKER), dtype=dtype)
        weights = load_head_weights(checkpoint, config, dtype)
        clients = running.connect() if running is not None else {}
        dispatcher = Dispatcher(plan, local, clients, dtype=dtype, max_rows=MAX_MESSAGE_ROWS, timer=timer)
        yield Session(Step35Model(config, weights, dtype, dispatcher, timer), dispatcher, plan)


@contextmanager
def _share_of_cores(num_processes: int) -> Iterator[None]:
    """Leave the other processes of this machine their cores: threads that wait for a core make all wait."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, before // num_processes))
    try:
        yield
    finally:
        torch.set_num_threads(before)
