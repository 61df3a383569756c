"""A model that is loaded as a command's options say, and ready to run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.cli.device import AUTO, Devices, devices_for
from orchestrator.cli.inputs import load_plan, name_in_errors
from orchestrator.cli.output import print_note
from orchestrator.cli.progress import shown_progress
from orchestrator.cli.residency import cache_start, check_residency, why_no_cache
from orchestrator.cli.run_options import RunOptions
from orchestrator.cli.running import Running, disks, moving, of_cluster, workers_of
from orchestrator.cli.whereabouts import of_head_and_experts
from orchestrator.cli.without_plan import dtype_of, in_this_process, over_workers
from orchestrator.one_box import OneBox
from orchestrator.run_memory import Demand
from orchestrator.runnable import check_runnable
from orchestrator.stopping import stopping_at_once
from placement.errors import InputError, PlanError
from placement.kv_size import KvForm
from placement.plan import Plan
from placement.residency import ResidencyRule
from placement.units import size
from workers.formats.digesting import DigestsBehind
from workers.formats.identity import check_made_for
from workers.formats.open_model import OpenModel
from workers.gpu.free import card_name
from workers.tiers import tiers_of

if TYPE_CHECKING:
    from orchestrator.session import Session


@dataclass(frozen=True, slots=True)
class Chosen:
    """What options choose, before a model is opened.

    Attributes:
        running: a cluster that runs.
        plan: the cluster's, or that of the options.
        devices: for a run in this process alone.
    """

    options: RunOptions
    model: Path
    plan: Path | None
    running: Running | None
    devices: Devices


@dataclass(frozen=True, slots=True)
class OpenedRun:
    """`box`: what was decided for a run in this process without a plan."""

    session: Session
    plan: Plan
    box: OneBox | None


def chosen(options: RunOptions) -> Chosen:
    """Look at what needs no model.

    Raises:
        InputError: options that do not go together.
        PotluckError: the cluster does not run, or a card that was asked for is not here.
    """
    if options.ray_address is not None and options.plan is None:
        raise InputError("--ray-address: expected with --plan PLAN.json, which says whom to ask there")
    running, model, plan = None, options.model, options.plan
    if options.cluster is not None:
        if (plan, options.workers, options.ray_address) != (None, None, None) or options.survive:
            raise InputError(
                "--cluster: runs its own plan; leave out --plan, --workers, --survive and --ray-address"
            )
        running, model, plan = of_cluster(options.cluster, model)
    if model is None:
        raise InputError("expected --model DIR, or --cluster CLUSTER.yaml of a cluster that runs")
    devices = Devices()
    if plan is None and (options.device != AUTO or not options.workers):
        devices = devices_for(options.device)
    return Chosen(options, model, plan, running, devices)


@contextmanager
def opened_run(
    run: Chosen,
    model: OpenModel,
    demand: Demand,
    *,
    silent: bool = False,
    say: Callable[[str], None] = print_note,
) -> Iterator[OpenedRun]:
    """Decide where everything lies, load it, and let go of it on the way out.

    Args:
        demand: of sequences.
        silent: say nothing but what went wrong.
        say: told what happens to workers while the model runs.

    Raises:
        InputError, PlanError: options that do not go with each other, the plan or the model.
        PotluckError: as `open_session`.
    """
    options = run.options
    made, box = _plan_of(run, model, demand, silent=silent)
    check_residency(options.residency, made)
    # Of `--workers` no tier is the head's.
    head_device = run.devices.head if made.head_tier is None and run.plan is None else made.head_device
    if made.asked_workers and options.ray_address is None and run.running is None and not silent:
        print_note(_starting(made, planned=run.plan is not None))
    with stopping_at_once():
        from orchestrator.session import open_session
    with ExitStack() as stack:
        stack.enter_context(DigestsBehind(model.path))
        if run.running is not None:
            stack.enter_context(run.running.heads)
        with shown_progress("loading", silent=silent) as on_progress:
            session = stack.enter_context(
                open_session(
                    model,
                    made,
                    workers=workers_of(made, model, options.ray_address, run.running),
                    num_drafts=demand.num_drafts,
                    positions=demand.positions,
                    kv_form=demand.kv_form,
                    on_progress=on_progress,
                    say=say,
                    spot_check=options.spot_check,
                    disks_bytes_per_s={} if run.running is None else disks(made, run.running),
                    device=head_device,
                    split=None if box is None else box.split,
                    cache=cache_start(options.residency, box),
                )
            )
        for note in model.checkpoint.notes:
            print_note(note)
        if box is None and not silent:
            # Not before: what does not fit is refused in one line.
            print_note(of_head_and_experts(made, head_device, options.residency.rule or ResidencyRule.lfu))
            if no_cache := why_no_cache(options.residency, made):
                print_note(no_cache)
        if run.plan is not None and made.workload is not None and demand.positions > made.workload.context:
            print_note(
                f"{run.plan} was made for texts of {made.workload.context:,} positions, and this one may "
                f"take {demand.positions:,}: there is memory for it, but its steps take longer than predicted"
            )
        if run.running is not None and session.watched is not None:
            stack.enter_context(moving(session, session.watched.watch, model, run.running))
        yield OpenedRun(session, made, box)


def _plan_of(run: Chosen, model: OpenModel, demand: Demand, *, silent: bool) -> tuple[Plan, OneBox | None]:
    options = run.options
    if run.plan is not None:
        return _given_plan(run, run.plan, model, demand, silent=silent), None
    name = dtype_of(model, options.dtype, demand, silent=silent)
    if options.workers:
        _check_alone(options.stats, "--workers")
        return over_workers(model, name, options.workers, options.survive), None
    if options.survive:
        raise InputError(
            f"--survive {options.survive}: expected with --workers N, of which as many may be lost"
        )
    rule = options.residency.rule
    box = in_this_process(model, name, demand, run.devices, options.stats, rule, silent=silent)
    return box.plan, box


def _given_plan(run: Chosen, path: Path, model: OpenModel, demand: Demand, *, silent: bool) -> Plan:
    options = run.options
    by = "--plan" if run.running is None else "--cluster"
    _check_alone(options.stats, by)
    made = load_plan(path, model.shape)
    with name_in_errors(path, PlanError):
        check_runnable(made)
        check_made_for(made, model.path)
    other_device = options.device != AUTO and card_name(options.device) != card_name(made.head_device)
    asked = {
        "--workers": options.workers is not None,
        "--survive": bool(options.survive),
        "--device": other_device,
        "--dtype": options.dtype not in (None, made.dtype),
    }
    given = next((option for option, is_given in asked.items() if is_given), None)
    if given is not None:
        raise InputError(
            f"{given} with {by}: {path} already says where experts live, that the head computes on "
            f"{made.head_device}, and that the run is in {made.dtype}; leave out {given}"
        )
    if not silent:
        for note in (*_on_disk(made), *_unlike(made, path, demand.kv_form, demand.num_drafts)):
            print_note(note)
    return made


def _on_disk(plan: Plan) -> Iterator[str]:
    """What of a plan is read from disks while it runs."""
    for worker in plan.workers:
        on_disk = [tier for tier in tiers_of(plan, worker.name) if tier.kind == "disk"]
        if on_disk:
            num_experts = sum(tier.num_experts for tier in on_disk)
            cache = size(sum(tier.cache_bytes for tier in on_disk))
            yield f"{num_experts:,} experts of {worker.name} stay on disk; a cache in memory has {cache}"


def _check_alone(stats: Path | None, by: str) -> None:
    if stats is not None:
        raise InputError(f"--stats with {by}: it chooses experts for VRAM where no plan does; leave it out")


def _unlike(plan: Plan, path: Path, kv: KvForm | None, drafts: int) -> Iterator[str]:
    """In what this run is not what the plan was made for."""
    workload = plan.workload
    if workload is None:
        return
    kept = kv or workload.kv_form
    if (kept, drafts) != (workload.kv_form, workload.drafts):
        yield (
            f"{path} was made for keys and values in {workload.kv_form} and {_count(workload.drafts)} a "
            f"step; this run has {kept} and {_count(drafts)}, so a step does not take the time predicted"
        )


def _count(drafts: int) -> str:
    return "one draft" if drafts == 1 else f"{drafts or 'no'} drafts"


def _starting(plan: Plan, *, planned: bool) -> str:
    count = len(plan.asked_workers)
    advice = "; --ray-address starts them on the plan's boxes" if planned else ""
    return f"starting {'one worker' if count == 1 else f'{count} workers'} on this machine{advice}"
