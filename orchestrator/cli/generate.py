"""`potluck generate`: text or token ids in, text and figures out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.inputs import load_plan, model_folder, name_in_errors
from orchestrator.cli.options import Json, Kv
from orchestrator.cli.output import errors, print_json, print_note
from orchestrator.cli.progress import shown_progress
from orchestrator.cli.prompt import check_prompt_options, encoded, ids_of, load_tokenizer
from orchestrator.cli.running import Running, disks, moving, of_cluster, workers_of
from orchestrator.cli.stream import Stream
from orchestrator.one_box import plan_here
from orchestrator.run_memory import Demand, mapped_parts
from orchestrator.runnable import DEFAULT_DTYPE, DtypeName, check_runnable
from orchestrator.stopping import stopping_at_once
from placement.errors import InputError, NonFiniteError, PlanError
from placement.kv_size import KvForm
from placement.plan import Plan
from placement.units import size
from placement.weight_format import FLOAT32
from workers.formats.contents import ModelContents, Part
from workers.formats.digesting import DigestsBehind
from workers.formats.identity import check_made_for
from workers.formats.open_model import OpenModel, kept_forms, open_model
from workers.memory.reservations import free_memory
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
    with stopping_at_once():
        # Torch takes seconds to load, which nobody should wait for whose cluster is not up.
        from orchestrator.cli.run_tables import run_tables
        from orchestrator.generate import GenerationParams, check_length
        from orchestrator.session import open_session
    check_prompt_options(prompt, token_ids, chat=chat, system=system)
    said_ids = None if token_ids is None else ids_of(token_ids)
    opened = open_model(model_folder(model))
    config = opened.config
    tokenizer = load_tokenizer(opened, needed=prompt is not None)
    prompt_ids = said_ids if said_ids is not None else encoded(prompt, tokenizer, chat=chat, system=system)
    params = GenerationParams(max_tokens, temperature, seed, ignore_eos, mtp)
    config.check_token_ids(prompt_ids)
    check_length(len(prompt_ids), max_tokens, config.max_position_embeddings)
    positions = len(prompt_ids) + max_tokens
    demand = Demand(positions, num_drafts=mtp, kv_form=kv)
    if plan is None:
        made = _plan_without_file(opened, dtype, workers or 0, survive, demand, silent=json)
    else:
        made = load_plan(plan, opened.shape)
        with name_in_errors(plan, PlanError):
            check_runnable(made)
            check_made_for(made, opened.path)
        if workers is not None or survive or dtype not in (None, made.dtype):
            given = "--workers" if workers is not None else "--survive" if survive else "--dtype"
            by = "--plan" if running is None else "--cluster"
            raise InputError(
                f"{given} with {by}: {plan} already says where experts live, and that the run is in "
                f"{made.dtype}; leave out {given}"
            )
        if not json:
            for note in (*_on_disk(made), *_unlike(made, plan, kv, mtp)):
                print_note(note)
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
                )
            )
        for note in opened.checkpoint.notes:
            print_note(note)
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
    if json:
        print_json(document(result, report, text))
    else:
        errors.print(*run_tables(report), sep="\n")


def _plan_without_file(
    model: OpenModel, dtype: DtypeName | None, num_workers: int, survive: int, demand: Demand, *, silent: bool
) -> Plan:
    """All in this process, with a line that says what goes where; or over equal workers."""
    config, checkpoint = model
    model.contents.check_drafts(demand.num_drafts)
    name = dtype or DEFAULT_DTYPE
    if dtype is None and not silent and _has_float32(model.contents):
        print_note(f"weights are float32 in the files and rounded to {name}; --dtype float32 keeps them")
    if num_workers:
        # The planner takes a while to load, and a run in one process does without.
        from orchestrator.cli.even_plan import even_plan

        forms = kept_forms(checkpoint, config, name)
        return even_plan(model.shape, num_workers, name, forms=forms, survive=survive)
    if survive:
        raise InputError(f"--survive {survive}: expected with --workers N, of which as many may be lost")
    box = plan_here(model, name, demand, free_memory(mapped_parts(model, name)))
    if not silent:
        print_note(box.reason)
    return box.plan


def _has_float32(contents: ModelContents) -> bool:
    """Whether a run in bfloat16 rounds matrices; norms and routers it leaves as they are."""
    matrices = (tensor for tensor in contents.tensors if tensor.part not in (Part.NORMS, Part.ROUTERS))
    return contents.in_directory and any(matrix.form == FLOAT32.name for matrix in matrices)


def _on_disk(plan: Plan) -> Iterator[str]:
    """What of a plan is read from disks while it runs."""
    for worker in plan.workers:
        on_disk = [tier for tier in tiers_of(plan, worker.name) if tier.kind == "disk"]
        if on_disk:
            num_experts = sum(tier.num_experts for tier in on_disk)
            cache = size(sum(tier.cache_bytes for tier in on_disk))
            yield f"{num_experts:,} experts of {worker.name} stay on disk; a cache in memory has {cache}"


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


def document(result: GenerationResult, report: RunReport, text: str) -> dict[str, Any]:
    """The JSON that scripts rely on (docs/json.md)."""
    from orchestrator.cli.run_tables import report_document

    return {
        "token_ids": list(result.token_ids),
        "text": text,
        "finish_reason": result.finish_reason,
    } | report_document(report)
