"""A model ready to generate: the head in this process, experts wherever the plan put them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch

from orchestrator.computed import Computed, computed_so_far, copied_so_far
from orchestrator.dispatch.dispatcher import Dispatcher, unwatched
from orchestrator.dispatch.spot_check import DEFAULT_SHARE, SpotCheck, arbiter_of
from orchestrator.dispatch.usage import Usage
from orchestrator.generate import GenerationParams, GenerationResult, OnTokens, generate
from orchestrator.launch.local import local_workers
from orchestrator.launch.watched import Watched, room_elsewhere, room_here, watched
from orchestrator.launch.workers import Workers
from orchestrator.loading import Loaded, kv_form_of, load_model
from orchestrator.membership.member import Expected
from orchestrator.membership.rescue import BoxRoom
from orchestrator.membership.standing import Standing
from orchestrator.model.kv_pool import KvPool
from orchestrator.model.step35 import Step35Model
from orchestrator.one_box import plan_here
from orchestrator.report import RunReport, make_report
from orchestrator.run_memory import Demand, mapped_parts, needs_of_head, reserve_run
from orchestrator.runnable import check_forms, check_runnable
from placement.files.quote import first_line
from placement.head_split import HeadSplit
from placement.kv_size import KvForm
from placement.message_size import MAX_MESSAGE_ROWS
from placement.plan import Plan
from placement.residency import CacheStart, ResidencyRule
from placement.weight_format import ExpertFormat
from placement.workload import DEFAULT_CONTEXT
from transport.messages import WireLimits
from workers.formats.checkpoint import Checkpoint
from workers.formats.digests import trunk_digest
from workers.formats.identity import IDENTITY, told
from workers.formats.open_model import OpenModel, held_expert_bytes
from workers.gpu.errors import DeviceLost
from workers.gpu.tier import VramTier
from workers.holdings import Holdings
from workers.memory.mapped import OnProgress
from workers.memory.reservations import free_memory


@dataclass(slots=True)
class Session:
    """What `open_session` gives: generate any number of times, then ask for the report."""

    head: Step35Model
    dispatcher: Dispatcher
    plan: Plan
    local: Holdings
    checkpoint: Checkpoint
    expert_bytes: Mapping[int, int]
    watched: Watched | None = None
    _results: list[GenerationResult] = field(default_factory=list)
    _decode: list[Usage] = field(default_factory=list)
    _computed: list[Computed] = field(default_factory=list)
    _lost: str = ""

    def generate(
        self, prompt_ids: Sequence[int], params: GenerationParams, on_tokens: OnTokens | None = None
    ) -> GenerationResult:
        """See `orchestrator.generate.generate`.

        Raises:
            CheckpointError: the model's files changed since they were mapped.
            DeviceLost: the head's card stopped working; from now on the CPU computes the head, with the same
                bits.
        """
        self.checkpoint.check_unchanged()
        before: list[tuple[Usage, Computed]] = []

        def note_first_token(token_ids: list[int]) -> None:
            if not before:
                before.append((self.dispatcher.usage.copy(), self._computed_so_far()))
            if on_tokens is not None:
                on_tokens(token_ids)

        try:
            result = generate(self.head, prompt_ids, params, note_first_token)
        except DeviceLost as error:
            self.without_card(error)
            raise
        self._results.append(result)
        usage, computed = before[0]
        self._decode.append(self.dispatcher.usage.since(usage))
        self._computed.append(self._computed_so_far() - computed)
        return result

    def without_card(self, error: DeviceLost) -> bool:
        """The CPU computes the head from now on, if it was its card that was lost; else returns False."""
        if self.head.card is None or self.head.card.device_name != error.device:
            return False
        # The files are mapped still, and what the card had of them is read again as it is needed.
        self.head.card = None
        self._lost = f"{first_line(error)}; until then the CPU computes the head"
        return True

    def keep_in_vram(self, rule: ResidencyRule) -> None:
        """Which experts of RAM stay on this process's cards from the next layer on; no bit depends on it.

        Nothing happens where a plan leaves a card no room for any. The thread that generates calls it,
        between two runs or from `on_tokens`.
        """
        for tier in self.local.tiers:
            if isinstance(tier, VramTier):
                tier.beside.rule = rule

    def notices(self) -> list[str]:
        """What the user should know of the experts' memory, here and on workers; see `ExpertTier.notices`."""
        found = [*([self._lost] if self._lost else []), *self.local.notices()]
        if self.watched is not None:
            found += self.watched.notices()
        return found

    def standing(self) -> Standing:
        """What is known of the workers now."""
        if self.watched is None:
            return Standing(self.dispatcher.view)
        return self.watched.watch.standing()

    def report(self) -> RunReport:
        """Figures of all generations so far."""
        log = None if self.watched is None else self.watched.watch.log
        return make_report(
            self._results,
            # The newest: others, or this process, may have taken experts on.
            self.dispatcher.view.plan,
            self.dispatcher.usage,
            self._decode,
            self.expert_bytes,
            None if log is None else log.counts(),
            () if log is None else log.liars(),
            self._computed,
            copied_so_far(self.local.tiers),
        )

    def _computed_so_far(self) -> Computed:
        activations = self.dispatcher.usage.activations
        local = self.dispatcher.view.local_worker
        here = 0 if local is None else activations[local]
        return computed_so_far(self.local.tiers, here, sum(activations) - here)


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
    say: Callable[[str], None] | None = None,
    spot_check: float | None = None,
    disks_bytes_per_s: Mapping[str, float] | None = None,
    device: str | None = None,
    split: HeadSplit | None = None,
    cache: CacheStart | None = None,
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
        say: told what happens to workers, a line each.
        spot_check: share of the requests that another holder computes as well; None for a small one where
            experts have several holders.
        disks_bytes_per_s: of workers' boxes, by worker name, "head" for this one's, as far as measured.
        device: that the head computes on; where left out, that of the plan's tier "head", or the CPU.
        split: what of a head on a card stays on the CPU; None for nothing but the embedding.
        cache: how this process's cards begin to keep experts of RAM; None for those used most of late.

    Raises:
        PlanError: the plan is for another model, or says what this release cannot run.
        PlanDoesNotFit: it takes more than its devices' budgets, or than this machine has free.
        DeviceUnavailable: a card of the plan is not here, or cannot be used.
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
    device = device or plan.head_device
    head = needs_of_head(model.contents, shape, plan.dtype, demand, device, split, model.path)
    with ExitStack() as stack:
        reservation, own = reserve_run(plan, head, model, workers_here=workers is None)
        stack.callback(reservation.close)
        load = partial(
            load_model,
            model,
            plan,
            demand,
            own,
            reservation,
            on_progress,
            device=device,
            split=split,
            cache=cache,
        )
        if not plan.asked_workers:
            yield _session(model, plan, demand, load())
            return
        room_of: Callable[[Plan, int], dict[str, BoxRoom]] = partial(
            room_elsewhere, disks_bytes_per_s=disks_bytes_per_s
        )
        if workers is None:
            room_of = room_here
            workers = local_workers(plan, shape, model.path, reservation=reservation.name)
            stack.enter_context(_share_of_cores(1 + len(plan.asked_workers)))
        running = stack.enter_context(workers)
        # While the workers load theirs.
        loaded = load()
        # Python's end kills a thread that loads experts, and torch's code in it takes the process along.
        stack.callback(loaded.local.close)
        cluster = stack.enter_context(
            watched(
                running,
                plan,
                Expected(
                    shape.fingerprint,
                    plan.dtype,
                    told(plan.digests.get(IDENTITY, ""), trunk_digest(model.path)),
                ),
                WireLimits.for_shape(shape),
                here=loaded.local,
                room=room_of(plan, reservation.room_bytes()),
                say=say,
            )
        )
        # From here on the workers' own reservations count.
        reservation.narrow(own)
        yield _session(model, plan, demand, loaded, cluster, _check_of(spot_check, plan, model))


def _check_of(share: float | None, plan: Plan, model: OpenModel) -> SpotCheck | None:
    if share is None:
        share = DEFAULT_SHARE if plan.holder_table.has_replicas else 0.0
    return SpotCheck(share, arbiter_of(model.checkpoint, model.config, plan)) if share else None


def load_local(model: OpenModel, dtype: torch.dtype, kv_form: KvForm | None = None) -> Step35Model:
    """Head and all experts in this process, the experts on disk where they do not fit its memory.

    Raises:
        PlanDoesNotFit: not even the head fits.
        CheckpointError: the model's files are damaged.
    """
    name = str(dtype).removeprefix("torch.")
    demand = Demand(min(DEFAULT_CONTEXT, model.shape.max_positions), kv_form=kv_form)
    plan = plan_here(model, name, demand, free_memory(mapped_parts(model, name))).plan
    return _session(model, plan, demand, load_model(model, plan, demand)).head


def _session(
    model: OpenModel,
    plan: Plan,
    demand: Demand,
    loaded: Loaded,
    cluster: Watched | None = None,
    spot_check: SpotCheck | None = None,
) -> Session:
    config, checkpoint = model
    forms = {layer.index: ExpertFormat.of_name(layer.form) for layer in plan.layers}
    expert_bytes = held_expert_bytes(model.contents.expert_formats, forms, config)
    standing, network = unwatched(plan, {})
    if cluster is not None:
        standing, network = cluster.watch.standing, cluster.network
    dispatcher = Dispatcher(
        standing,
        network,
        local=loaded.local,
        max_rows=MAX_MESSAGE_ROWS,
        timer=loaded.timer,
        tell=None if cluster is None else cluster.watch.tell,
        spot_check=spot_check,
    )
    if cluster is not None:
        cluster.watch.follow(lambda: dispatcher.epoch)
    dtype: torch.dtype = getattr(torch, plan.dtype)
    pool = KvPool(loaded.pool_bytes)
    kv_form = kv_form_of(plan, demand)
    head = Step35Model(config, loaded.weights, dtype, dispatcher, loaded.timer, kv_form, pool, loaded.card)
    return Session(head, dispatcher, plan, loaded.local, checkpoint, expert_bytes, cluster)


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
