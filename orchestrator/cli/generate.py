"""`potluck generate`: text or token ids in, text and figures out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.device import AUTO, DEVICE_HELP, Devices, devices_for
from orchestrator.cli.inputs import load_plan, model_folder, name_in_errors
from orchestrator.cli.options import Json, Kv
from orchestrator.cli.output import errors, print_json, print_note
from orchestrator.cli.progress import shown_progress
from orchestrator.cli.prompt import check_prompt_options, encoded, ids_of, load_tokenizer
from orchestrator.cli.residency import RESIDENCY_HELP, Residency, cache_start, check_residency, why_no_cache
from orchestrator.cli.running import Running, disks, moving, of_cluster, workers_of
from orchestrator.cli.stream import Stream
from orchestrator.cli.whereabouts import of_head_and_experts
from orchestrator.cli.without_plan import dtype_of, in_this_process, over_workers
from orchestrator.one_box import OneBox
from orchestrator.run_memory import Demand
from orchestrator.runnable import DEFAULT_DTYPE, DtypeName, check_runnable
from orchestrator.stopping import stopping_at_once
from placement.errors import InputError, NonFiniteError, PlanError
from placement.kv_size import KvForm
from placement.plan import Plan
from placement.residency import ResidencyRule
from placement.units import size
from workers.formats.digesting import DigestsBehind
from workers.formats.identity import check_made_for
from workers.formats.open_model import open_model
from workers.gpu.free import card_name
from workers.tiers import tiers_of

if TYPE_CHECKING:
    from orchestrator.generate import GenerationResult
    from orchestrator.report import RunReport


def generate(
    model: Annotated[
        Path | None,
        typer.Option(help="Model directory (config.json, safetensors) or GGUF file; a cluster's by default."),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="Text to continue; - reads it from standard input.")
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Ask the prompt as a user, by the model's chat template.")
    ] = False,
    system: Annotated[str | None, typer.Option(help="System text before it, with --chat.")] = None,
    token_ids: Annotated[
        str | None, typer.Option(help="Prompt as ids, 1,2,3: works without a tokenizer.", metavar="IDS")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Stop after this many.")] = 128,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.0,
    top_k: Annotated[int, typer.Option(min=0, help="Choose among so many likeliest; 0: all.")] = 0,
    top_p: Annotated[
        float, typer.Option(min=0, max=1, help="Choose among the likeliest of this joint probability.")
    ] = 1.0,
    min_p: Annotated[
        float, typer.Option(min=0, max=1, help="Leave out those below this share of the likeliest.")
    ] = 0.0,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Never choose an end token.")] = False,
    dtype: Annotated[
        DtypeName | None,
        typer.Option(help=f"Weights, caches, wire; default the plan's, or {DEFAULT_DTYPE}."),
    ] = None,
    kv: Kv = None,
    mtp: Annotated[int, typer.Option(min=0, help="Drafts a step, 0 to 3.")] = 0,
    workers: Annotated[
        int | None, typer.Option(min=0, max=64, help="Equal workers on this machine; 0: all in this process.")
    ] = None,
    survive: Annotated[
        int, typer.Option(min=0, help="With --workers: how many may be lost without reading from disks.")
    ] = 0,
    plan: Annotated[
        Path | None, typer.Option(help="Plan made by `potluck plan`, instead of --workers.")
    ] = None,
    ray_address: Annotated[
        str | None, typer.Option(help="A running Ray cluster for --plan, such as auto or 10.0.0.1:6379.")
    ] = None,
    spot_check: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Share of requests computed twice and compared; 0.001 where two can.",
            metavar="SHARE",
        ),
    ] = None,
    cluster: Annotated[
        Path | None, typer.Option(help="Cluster file, of a cluster that `potluck up` started.")
    ] = None,
    device: Annotated[str, typer.Option(help=DEVICE_HELP, metavar="DEVICE")] = AUTO,
    stats: Annotated[
        Path | None,
        typer.Option(help="Routing file of `potluck stats`: its hottest experts go where it is fastest."),
    ] = None,
    residency: Annotated[Residency, typer.Option(help=RESIDENCY_HELP)] = Residency.auto,
    seed: Annotated[int, typer.Option(min=0, help="For temperatures above 0.")] = 0,
    json: Json = False,
) -> None:
    """Continue a prompt."""
    if ray_address is not None and plan is None:
        raise InputError("--ray-address: expected with --plan PLAN.json, which says whom to ask there")
    running: Running | None = None
    if cluster is not None:
        if (plan, workers, ray_address) != (None, None, None) or survive:
            raise InputError(
                "--cluster: runs its own plan; leave out --plan, --workers, --survive and --ray-address"
            )
        running, model, plan = of_cluster(cluster, model)
    if model is None:
        raise InputError("expected --model DIR, or --cluster CLUSTER.yaml of a cluster that runs")
    devices = Devices()
    if plan is None and (device != AUTO or not workers):
        devices = devices_for(device)
    with stopping_at_once():
        # Torch takes seconds to load, which nobody should wait for whose cluster is not up, or whose card.
        from orchestrator.cli.run_tables import run_tables
        from orchestrator.generate import GenerationParams, check_length
        from orchestrator.sampling_params import SamplingParams
        from orchestrator.session import open_session
    check_prompt_options(prompt, token_ids, chat=chat, system=system)
    said_ids = None if token_ids is None else ids_of(token_ids)
    opened = open_model(model_folder(model))
    config = opened.config
    tokenizer = load_tokenizer(opened, needed=prompt is not None)
    prompt_ids = said_ids if said_ids is not None else encoded(prompt, tokenizer, chat=chat, system=system)
    sampling = SamplingParams(temperature, top_k, top_p, min_p, seed)
    params = GenerationParams(max_tokens, sampling, ignore_eos, mtp)
    config.check_token_ids(prompt_ids)
    check_length(len(prompt_ids), max_tokens, config.max_position_embeddings)
    positions = len(prompt_ids) + max_tokens
    demand = Demand(positions, num_drafts=mtp, kv_form=kv)
    box: OneBox | None = None
    if plan is None:
        name = dtype_of(opened, dtype, demand, silent=json)
        if workers:
            _check_alone(stats, "--workers")
            made = over_workers(opened, name, workers, survive)
        elif survive:
            raise InputError(f"--survive {survive}: expected with --workers N, of which as many may be lost")
        else:
            box = in_this_process(opened, name, demand, devices, stats, residency.rule, silent=json)
            made = box.plan
    else:
        _check_alone(stats, "--plan" if running is None else "--cluster")
        made = load_plan(plan, opened.shape)
        with name_in_errors(plan, PlanError):
            check_runnable(made)
            check_made_for(made, opened.path)
        other_device = device != AUTO and card_name(device) != card_name(made.head_device)
        if workers is not None or survive or other_device or dtype not in (None, made.dtype):
            asked = {"--workers": workers is not None, "--survive": survive, "--device": other_device}
            given = next((option for option, is_given in asked.items() if is_given), "--dtype")
            by = "--plan" if running is None else "--cluster"
            raise InputError(
                f"{given} with {by}: {plan} already says where experts live, that the head computes on "
                f"{made.head_device}, and that the run is in {made.dtype}; leave out {given}"
            )
        if not json:
            for note in (*_on_disk(made), *_unlike(made, plan, kv, mtp)):
                print_note(note)
    check_residency(residency, made)
    # Of `--workers` no tier is the head's.
    head_device = devices.head if made.head_tier is None and plan is None else made.head_device
    if made.asked_workers and ray_address is None and running is None and not json:
        print_note(_starting(made, planned=plan is not None))
    with ExitStack() as stack:
        stack.enter_context(DigestsBehind(opened.path))
        if running is not None:
            stack.enter_context(running.heads)
        with shown_progress("loading", silent=json) as on_progress:
            session = stack.enter_context(
                open_session(
                    opened,
                    made,
                    workers=workers_of(made, opened, ray_address, running),
                    num_drafts=mtp,
                    positions=positions,
                    kv_form=kv,
                    on_progress=on_progress,
                    say=print_note,
                    spot_check=spot_check,
                    disks_bytes_per_s={} if running is None else disks(made, running),
                    device=head_device,
                    split=None if box is None else box.split,
                    cache=cache_start(residency, box),
                )
            )
        for note in opened.checkpoint.notes:
            print_note(note)
        if box is None and not json:
            # Not before: what does not fit is refused in one line.
            print_note(of_head_and_experts(made, head_device, residency.rule or ResidencyRule.lfu))
            if no_cache := why_no_cache(residency, made):
                print_note(no_cache)
        if plan is not None and made.workload is not None and positions > made.workload.context:
            print_note(
                f"{plan} was made for texts of {made.workload.context:,} positions, and this one may take "
                f"{positions:,}: there is memory for it, but its steps take longer than predicted"
            )
        if running is not None and session.watched is not None:
            stack.enter_context(moving(session, session.watched.watch, opened, running))
        stream = Stream(tokenizer, silent=json)
        with name_in_errors(model, NonFiniteError):
            result = session.generate(prompt_ids, params, stream.push)
        text = stream.finish()
        notices = session.notices()
    report = session.report()
    for notice in notices:
        print_note(notice)
    step_s = None if box is None else box.step_s
    if json:
        print_json(document(result, report, text, step_s))
    else:
        errors.print(*run_tables(report, step_s), sep="\n")


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


def document(
    result: GenerationResult, report: RunReport, text: str, step_s: float | None = None
) -> dict[str, Any]:
    """The JSON that scripts rely on (docs/json.md). `step_s`: predicted for a decode step."""
    from orchestrator.cli.run_tables import report_document

    return {
        "token_ids": list(result.token_ids),
        "text": text,
        "finish_reason": result.finish_reason,
    } | report_document(report, step_s)
