"""What a run was like, in figures: the one JSON document and the tables of `generate` and `demo`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

from orchestrator.computed import Computed, Copied
from orchestrator.dispatch.usage import Usage
from orchestrator.generate import GenerationResult
from placement.plan import Plan

_NOTHING = Copied()


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """`num_bytes` of the experts held; `share` of all (token, expert) pairs of the run."""

    name: str
    experts: int
    num_bytes: int
    share: float


@dataclass(frozen=True, slots=True)
class RunReport:
    """Figures of one or several generations on one plan.

    Attributes:
        num_tokens: generated, the first of each generation (from prefill) included.
        remote_layers_per_step, remote_layers_per_token: how many layers of a decode step asked another
            process; and that number for each token which the step gave.
        time_s: decode seconds by part.
        events: how often each kind of event of the cluster happened (`membership.events`); empty where
            nobody watches.
        spot_checks: requests that other holders computed as well.
        liars: workers whose numbers were found to be wrong.
        computed: where the experts of decode steps were computed.
        copied: what came to cards from RAM, of the run with its prompts.
    """

    num_tokens: int
    steps: int
    drafted_by_position: tuple[int, ...]
    accepted_by_position: tuple[int, ...]
    prefill_s: float
    decode_s: float
    tokens_per_s: float
    remote_layers_per_step: float
    remote_layers_per_token: float
    coarsened_rows: int
    time_s: dict[str, float]
    workers: tuple[WorkerReport, ...]
    events: Mapping[str, int] = field(default_factory=dict)
    spot_checks: int = 0
    liars: tuple[str, ...] = ()
    computed: Computed = field(default_factory=Computed)
    copied: Copied = _NOTHING

    @property
    def accepted_drafts_per_step(self) -> float:
        return sum(self.accepted_by_position) / self.steps if self.steps else 0.0


def make_report(
    results: Sequence[GenerationResult],
    plan: Plan,
    whole: Usage,
    decode: Sequence[Usage],
    expert_bytes: Mapping[int, int],
    events: Mapping[str, int] | None = None,
    liars: Sequence[str] = (),
    computed: Sequence[Computed] = (),
    copied: Copied = _NOTHING,
) -> RunReport:
    """What a run was like.

    Args:
        whole: counts of the run with its prefills.
        decode: of the decode steps of each result.
        expert_bytes: absolute layer index -> what one of its experts takes, as it is kept.
        events, liars: of the watch over the workers.
        computed: of the decode steps of each result.
    """
    decode_s = sum(result.decode_s for result in results)
    decoded = sum(len(result.token_ids) - 1 for result in results)
    steps = sum(result.steps for result in results)
    remote_layers = sum(usage.remote_layers for usage in decode)
    activations = sum(whole.activations)
    held = [plan.experts_of_tier(tier) for tier in range(len(plan.tiers))]
    return RunReport(
        num_tokens=sum(len(result.token_ids) for result in results),
        steps=steps,
        drafted_by_position=_add([result.drafted_by_position for result in results]),
        accepted_by_position=_add([result.accepted_by_position for result in results]),
        prefill_s=sum(result.prefill_s for result in results),
        decode_s=decode_s,
        tokens_per_s=decoded / decode_s if decode_s else 0.0,
        remote_layers_per_step=remote_layers / steps if steps else 0.0,
        remote_layers_per_token=remote_layers / decoded if decoded else 0.0,
        coarsened_rows=whole.coarsened_rows,
        time_s={
            name: sum(result.time_s.get(name, 0.0) for result in results)
            for name in dict.fromkeys(name for result in results for name in result.time_s)
        },
        workers=tuple(
            WorkerReport(
                worker.name,
                sum(len(ids) for tier in worker.tiers for ids in held[tier].values()),
                sum(
                    len(ids) * expert_bytes[layer]
                    for tier in worker.tiers
                    for layer, ids in held[tier].items()
                ),
                count / max(activations, 1),
            )
            # The last view may have workers that this plan has not.
            for worker, count in zip(plan.workers, whole.activations, strict=False)
        ),
        events=dict(events or {}),
        spot_checks=whole.checked,
        liars=tuple(liars),
        computed=sum(computed, Computed()),
        copied=copied,
    )


def _add(counts: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    # Runs of one session may draft more or less.
    return tuple(map(sum, zip_longest(*counts, fillvalue=0)))
