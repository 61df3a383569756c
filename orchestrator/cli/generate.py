"""`potluck generate`: text or token ids in, text and figures out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.device import AUTO
from orchestrator.cli.inputs import check_mtp, model_folder, name_in_errors
from orchestrator.cli.opened_run import chosen, opened_run
from orchestrator.cli.options import Json, Kv
from orchestrator.cli.output import errors, print_json, print_note
from orchestrator.cli.prompt import check_prompt_options, encoded, ids_of, load_tokenizer
from orchestrator.cli.residency import Residency
from orchestrator.cli.run_options import (
    ClusterFile,
    Device,
    Dtype,
    KeptInVram,
    Model,
    NumWorkers,
    PlanFile,
    RayAddress,
    RunOptions,
    SpotCheckShare,
    Stats,
    Survive,
)
from orchestrator.cli.stream import Stream
from orchestrator.run_memory import Demand
from orchestrator.stopping import stopping_at_once
from placement.errors import NonFiniteError
from workers.formats.open_model import open_model

if TYPE_CHECKING:
    from orchestrator.generate import GenerationResult
    from orchestrator.report import RunReport


def generate(
    model: Model = None,
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
    dtype: Dtype = None,
    kv: Kv = None,
    mtp: Annotated[int, typer.Option(min=0, help="Drafts a step, 0 to 3.")] = 0,
    workers: NumWorkers = None,
    survive: Survive = 0,
    plan: PlanFile = None,
    ray_address: RayAddress = None,
    spot_check: SpotCheckShare = None,
    cluster: ClusterFile = None,
    device: Device = AUTO,
    stats: Stats = None,
    residency: KeptInVram = Residency.auto,
    seed: Annotated[
        int, typer.Option(min=0, help="Of the noise above temperature 0; the same seed gives the same text.")
    ] = 0,
    json: Json = False,
) -> None:
    """Continue a prompt."""
    run = chosen(
        RunOptions(
            model,
            plan,
            ray_address,
            cluster,
            workers,
            survive,
            device,
            dtype,
            kv,
            stats,
            residency,
            spot_check,
        )
    )
    with stopping_at_once():
        # Torch takes seconds to load, which nobody should wait for whose cluster is not up, or whose card.
        from orchestrator.cli.run_tables import run_tables
        from orchestrator.generate import GenerationParams, check_length
        from orchestrator.sampling_params import SamplingParams
    check_prompt_options(prompt, token_ids, chat=chat, system=system)
    said_ids = None if token_ids is None else ids_of(token_ids)
    opened = open_model(model_folder(run.model))
    check_mtp(opened.contents, mtp)
    config = opened.config
    tokenizer = load_tokenizer(opened, needed=prompt is not None)
    prompt_ids = said_ids if said_ids is not None else encoded(prompt, tokenizer, chat=chat, system=system)
    sampling = SamplingParams(temperature, top_k, top_p, min_p, seed)
    if not temperature and not json and (top_k, top_p, min_p, seed) != (0, 1.0, 0.0, 0):
        print_note("--top-k, --top-p, --min-p and --seed change nothing at --temperature 0, which is greedy")
    params = GenerationParams(max_tokens, sampling, ignore_eos, mtp)
    config.check_token_ids(prompt_ids)
    check_length(len(prompt_ids), max_tokens, config.max_position_embeddings)
    demand = Demand(len(prompt_ids) + max_tokens, num_drafts=mtp, kv_form=kv)
    with opened_run(run, opened, demand, silent=json) as found:
        session = found.session
        stream = Stream(tokenizer, silent=json)
        with name_in_errors(run.model, NonFiniteError):
            result = session.generate(prompt_ids, params, stream.push)
        text = stream.finish()
        notices = session.notices()
    report = session.report()
    for notice in notices:
        print_note(notice)
    step_s = None if found.box is None else found.box.step_s
    if json:
        print_json(document(result, report, text, step_s))
    else:
        errors.print(*run_tables(report, step_s), sep="\n")


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
