"""The experts of a box: one tier a device, side by side, their sums added before anyone is answered."""

from __future__ import annotations

import weakref
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread

import numpy as np
from numpy.typing import NDArray

from placement.errors import WorkerStartError
from placement.experts import Experts
from placement.files.quote import first_line, quote
from placement.plan import LOCAL_WORKER, Plan
from placement.weight_format import ExpertFormat
from transport.expert_rows import ExpertRows
from workers.disk.tier import DiskTier
from workers.fixed_point import PartialSum
from workers.formats.checkpoint import Checkpoint
from workers.formats.open_model import held_expert_bytes
from workers.gpu.cards import shared_device
from workers.gpu.errors import DeviceFull, DeviceLost, DeviceUnavailable
from workers.gpu.tier import VramTier, host_bytes
from workers.held_experts import check_experts
from workers.memory.budget import Need, SharedPart, file_key
from workers.memory.mapped import OnProgress
from workers.model_config import Step35Config
from workers.store import ExpertStore
from workers.tiers import ExpertTier, TierSpec, tiers_of, why_not_run


def load_tiers(
    specs: Sequence[TierSpec],
    checkpoint: Checkpoint,
    config: Step35Config,
    dtype: str,
    *,
    on_progress: OnProgress | None = None,
) -> ExpertTier:
    """Load a box's tiers, at least one, as one: see `load_each`."""
    return side_by_side(load_each(specs, checkpoint, config, dtype, on_progress=on_progress))


def side_by_side(tiers: Sequence[ExpertTier]) -> ExpertTier:
    """Tiers as one; a single one is called directly."""
    return tiers[0] if len(tiers) == 1 else TieredExperts(tiers)


def load_each(
    specs: Sequence[TierSpec],
    checkpoint: Checkpoint,
    config: Step35Config,
    dtype: str,
    *,
    on_progress: OnProgress | None = None,
) -> list[ExpertTier]:
    """Load a box's tiers.

    Args:
        dtype: the form of experts whose tier does not name theirs.
        on_progress: as of `ExpertStore.load`, tier after tier.

    Raises:
        WorkerStartError: a kind of memory or a device that this release has no tier for, no such card, or no
            memory.
        PlanError, CheckpointError: as `ExpertStore.load`.
    """
    for spec in specs:
        problem = why_not_run(spec.kind, spec.device)
        if problem is not None:
            raise WorkerStartError(_which(spec, specs) + problem)
    tiers: list[ExpertTier] = []
    for spec in specs:
        try:
            forms = {layer: ExpertFormat.of_name(spec.forms.get(layer, dtype)) for layer in spec.experts}
            tiers.append(_load(spec, checkpoint, config, forms, on_progress))
        except (DeviceFull, DeviceLost, DeviceUnavailable) as error:
            raise WorkerStartError(f"{_which(spec, specs)}cannot hold its experts: {error}") from error
        except (RuntimeError, MemoryError) as error:  # torch says of both that there is no memory
            raise WorkerStartError(
                f"{_which(spec, specs)}cannot hold its experts: {first_line(error)}: "
                "plan for a memory that this machine has"
            ) from error
    return tiers


def tier_needs(
    specs: Sequence[TierSpec], checkpoint: Checkpoint, config: Step35Config, dtype: str
) -> list[Need]:
    """What a box's tiers will take in RAM; arguments as of `load_tiers`.

    Raises:
        PlanError: experts that the model does not have.
        CheckpointError: a layer's experts are missing.
    """
    needs = []
    for spec in specs:
        check_experts(config, spec.experts)
        forms = {layer: ExpertFormat.of_name(spec.forms.get(layer, dtype)) for layer in spec.experts}
        what = f"{spec.num_experts:,} experts on {quote(spec.name)}"
        need = need_of(spec.experts, what, checkpoint, config, forms)
        if spec.kind == "disk":
            need = Need(f"the cache of the {what}", min(spec.cache_bytes, need.num_bytes))
        elif spec.kind == "vram":
            need = Need(f"buffers for experts on {quote(spec.name)}", host_bytes(config))
        needs.append(need)
    return needs


def need_of(
    experts: Mapping[int, Collection[int]],
    what: str,
    checkpoint: Checkpoint,
    config: Step35Config,
    formats: Mapping[int, ExpertFormat],
) -> Need:
    """What experts take in memory, and how much of that is views of the model's files.

    Args:
        experts: layer -> ids.
        what: for people.
        formats: what each of these layers' experts are to be kept in.

    Raises:
        CheckpointError: a layer's experts are missing.
    """
    stored = {layer: checkpoint.expert_format(layer, config) for layer in experts}
    wanted = {layer: formats[layer] for layer in experts}
    each = held_expert_bytes(stored, wanted, config)
    file = file_key(checkpoint.path)
    shared = tuple(
        SharedPart(f"{file} layer {layer}", each[layer], sum(1 << expert for expert in ids))
        for layer, ids in experts.items()
        # What is kept otherwise than it is stored is a copy.
        if ids and stored[layer].kept_as(wanted[layer]) == stored[layer]
    )
    return Need(what, sum(len(ids) * each[layer] for layer, ids in experts.items()), shared)


def _load(
    spec: TierSpec,
    checkpoint: Checkpoint,
    config: Step35Config,
    forms: Mapping[int, ExpertFormat],
    on_progress: OnProgress | None,
) -> ExpertTier:
    if spec.kind == "disk":
        return DiskTier(checkpoint, config, spec.experts, formats=forms, cache_bytes=spec.cache_bytes)
    if spec.kind == "vram":
        device = shared_device(spec.device)
        return VramTier.load(
            checkpoint,
            config,
            spec.experts,
            formats=forms,
            device=device,
            cache_bytes=spec.cache_bytes,
            on_progress=on_progress,
        )
    return ExpertStore.load(checkpoint, config, spec.experts, formats=forms, on_progress=on_progress)


def _which(spec: TierSpec, specs: Sequence[TierSpec]) -> str:
    """Of several devices, in messages about one; the worker's name stands before it already."""
    return f"device {quote(spec.name)}: " if len(specs) > 1 else ""


def load_head_tiers(plan: Plan, checkpoint: Checkpoint, config: Step35Config) -> ExpertTier | None:
    """The experts in the head's own process, None where the plan has none there; errors as `load_tiers`."""
    specs = tiers_of(plan, LOCAL_WORKER) if plan.local_worker is not None else ()
    return load_tiers(specs, checkpoint, config, plan.dtype) if specs else None


class TieredExperts:
    """Several tiers as one: an `ExpertTier` whose sums are those of all.

    An expert that several tiers hold is computed by the first of them; the sum is the same for any. The first
    tier of a request works in the caller's thread, each other one in a thread of its own, which ends when
    this object is let go.
    """

    def __init__(self, tiers: Sequence[ExpertTier]) -> None:
        """`tiers` in the plan's order, at least one."""
        self._tiers = tuple(tiers)
        experts: dict[int, dict[int, int]] = {}
        for number, tier in enumerate(self._tiers):
            for layer, ids in tier.experts.items():
                of_expert = experts.setdefault(layer, {})
                for expert in ids:
                    of_expert.setdefault(expert, number)
        self._tier_of = {layer: _table(of_expert) for layer, of_expert in experts.items()}
        self._experts = {layer: tuple(sorted(of_expert)) for layer, of_expert in experts.items()}
        self._threads = [_TierThread(tier) for tier in self._tiers]
        stores = [tier for tier in self._tiers if isinstance(tier, ExpertStore)]
        self._cards = [
            (number, tier) for number, tier in enumerate(self._tiers) if isinstance(tier, VramTier)
        ]
        for _, card in self._cards:
            card.beside.pair(stores)

    @property
    def tiers(self) -> tuple[ExpertTier, ...]:
        """In the plan's order."""
        return self._tiers

    @property
    def experts(self) -> Experts:
        return self._experts

    @property
    def num_experts(self) -> int:
        """Sum over the tiers: an expert that two of them hold counts twice."""
        return sum(tier.num_experts for tier in self._tiers)

    @property
    def held_bytes(self) -> int:
        return sum(tier.held_bytes for tier in self._tiers)

    def notices(self) -> tuple[str, ...]:
        return tuple(notice for tier in self._tiers for notice in tier.notices())

    def forward(self, layer: int, rows: ExpertRows) -> PartialSum:
        """See `ExpertTier.forward`. What one tier raises is raised when all have finished."""
        here, *beside = parts = self._split(layer, rows)
        answers = [self._threads[part.tier].begin(layer, part.rows) for part in beside]
        try:
            sums = [self._tiers[here.tier].forward(layer, here.rows)]
        finally:
            results = [answer.get() for answer in answers]
        for result in results:
            if isinstance(result, BaseException):
                raise result
            sums.append(result)
        return _added(parts, sums, rows) if beside else sums[0]

    def _split(self, layer: int, rows: ExpertRows) -> list[_Part]:
        """One part a tier that has experts of these rows, with the rows that it has a part in."""
        ids = rows.expert_ids
        wanted = ids >= 0
        # What no tier holds, and rows that want nothing, are the first tier's to answer for.
        tier_of = self._tier_of.get(layer, _NOBODY).take(ids, mode="clip")
        for number, card in self._cards:
            claimed = card.claims(layer, ids)
            if claimed is not None:
                tier_of = np.where(claimed.take(ids, mode="clip"), number, tier_of)
        tiers = sorted(set(tier_of[wanted].tolist())) or [0]
        if len(tiers) == 1:
            return [_Part(tiers[0], None, rows)]
        parts = []
        for tier in tiers:
            mine = wanted & (tier_of == tier)
            touched = mine.any(axis=1)
            masked = rows._replace(expert_ids=np.where(mine, ids, np.int32(-1)))
            if touched.all():
                parts.append(_Part(tier, None, masked))
            else:
                places = np.flatnonzero(touched)
                parts.append(_Part(tier, places, masked.at(places)))
        return parts


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """What of a request is one tier's; `places` of its rows in the request, None for all of them."""

    tier: int
    places: NDArray[np.intp] | None
    rows: ExpertRows


def _added(parts: Sequence[_Part], sums: Sequence[PartialSum], rows: ExpertRows) -> PartialSum:
    pairs = list(zip(parts, sums, strict=True))
    if parts[0].places is None:
        values, saturated = sums[0].values, sums[0].saturated
        del pairs[0]
    else:
        values = np.zeros(rows.hidden.shape, np.int32)
        saturated = np.zeros(rows.num_rows, np.bool_)
    for part, of_tier in pairs:
        places = slice(None) if part.places is None else part.places
        values[places] += of_tier.values
        saturated[places] |= of_tier.saturated
    return PartialSum(values, saturated)


class _TierThread:
    """Runs one tier beside the caller, one request at a time. Started by the first."""

    def __init__(self, tier: ExpertTier) -> None:
        self._tier = tier
        self._asked: SimpleQueue[_Request | None] = SimpleQueue()
        self._started = False

    def begin(self, layer: int, rows: ExpertRows) -> _Answer:
        """Hand over a request; the answer is what the tier gives or raises, once it is done."""
        if not self._started:
            self._started = True
            # The thread knows the queue and not this object, whose end is the thread's too.
            Thread(target=_work, args=(self._tier, self._asked), name="expert-tier", daemon=True).start()
            weakref.finalize(self, self._asked.put, None)
        answer: _Answer = SimpleQueue()
        self._asked.put((layer, rows, answer))
        return answer


_Answer = SimpleQueue[PartialSum | BaseException]
_Request = tuple[int, ExpertRows, _Answer]


def _work(tier: ExpertTier, asked: SimpleQueue[_Request | None]) -> None:
    while (request := asked.get()) is not None:
        layer, rows, answer = request
        try:
            answer.put(tier.forward(layer, rows))
        except BaseException as error:
            answer.put(error)
        del request, rows, answer


_NOBODY: NDArray[np.int16] = np.zeros(1, np.int16)


def _table(of_expert: Mapping[int, int]) -> NDArray[np.int16]:
    """The tier of each expert, 0 where none holds it: int16 [largest id + 2], so that the last is 0."""
    table = np.zeros(max(of_expert) + 2, np.int16)
    table[list(of_expert)] = list(of_expert.values())
    return table
