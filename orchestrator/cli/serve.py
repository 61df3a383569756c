"""`potluck serve`: a model behind the APIs that editors and agents speak."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.device import AUTO
from orchestrator.cli.inputs import check_mtp, model_folder
from orchestrator.cli.opened_run import chosen, opened_run
from orchestrator.cli.options import Kv
from orchestrator.cli.output import print_note
from orchestrator.cli.prompt import load_tokenizer
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
from orchestrator.run_memory import Demand
from orchestrator.stopping import stopping_at_once
from placement.errors import InputError
from placement.files.quote import quote
from workers.formats.contents import Part
from workers.formats.open_model import model_name, open_model

_SWITCH_S = 0.0005
_MOST_NAME = 255
"""Characters, as of a file's name. Each answer repeats it."""
USUAL_CONTEXT = 32_768
"""What coding agents fill before they begin a new text."""


def serve(
    model: Model = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; others than this machine's own need --api-keys.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: one that is free.")] = 8000,
    api_keys: Annotated[
        Path | None, typer.Option(help="File of `potluck keys`: only who has one of them may ask.")
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="PEM certificate, with --tls-key: HTTPS.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its PEM key.")] = None,
    name: Annotated[
        str | None, typer.Option(help="The model's name for clients; default its file's or directory's.")
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="Tokens of prompt and answer together, at most; memory for one such text is kept free. "
            f"Default {USUAL_CONTEXT:,}, or what the model has.",
        ),
    ] = None,
    mtp: Annotated[
        int | None, typer.Option(min=0, help="Drafts a step at most, 0 to 3; default all that the model has.")
    ] = None,
    most_delay: Annotated[
        float,
        typer.Option(
            min=0, help="Seconds that reading prompts may add to others' next token.", metavar="SECONDS"
        ),
    ] = 1.0,
    most_waiting: Annotated[
        int,
        typer.Option(
            min=1,
            help="Answers that wait for room; more get 429. One client alone may fill half of the places.",
        ),
    ] = 64,
    dtype: Dtype = None,
    kv: Kv = None,
    workers: NumWorkers = None,
    survive: Survive = 0,
    plan: PlanFile = None,
    ray_address: RayAddress = None,
    spot_check: SpotCheckShare = None,
    cluster: ClusterFile = None,
    device: Device = AUTO,
    stats: Stats = None,
    residency: KeptInVram = Residency.auto,
) -> None:
    """Serve a model over HTTP: OpenAI's and Anthropic's APIs, and a page to look at."""
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
    shown_name = name_for_clients(name, run.model)
    if not math.isfinite(most_delay):
        raise InputError(f"--most-delay {most_delay}: expected a number of seconds from 0 upwards")
    with stopping_at_once():
        # Torch takes seconds to load, which nobody should wait for whose options are wrong.
        from orchestrator.api.addresses import is_loopback
        from orchestrator.api.keys import read_keys
        from orchestrator.api.listening import check_listening
        from orchestrator.api.log_lines import logging_to
        from orchestrator.api.settings import ApiSettings
        from orchestrator.cli.here import measured_here
        from orchestrator.cli.traffic_whatif import rank_on_traffic
        from orchestrator.serving.serving import Serving, serve_until_stopped
    keys = () if api_keys is None else tuple(read_keys(api_keys))
    settings = ApiSettings(host=host, port=port, keys=keys, tls_certificate=tls_cert, tls_key=tls_key)
    # Loading the model takes minutes, and would have been for nothing.
    check_listening(settings)
    if tls_cert is None and not is_loopback(host):
        print_note(f"warning: --host {host} without TLS: whoever listens on the network reads keys and texts")
    opened = open_model(model_folder(run.model))
    tokenizer = load_tokenizer(opened, needed=True)
    assert tokenizer is not None
    has_mtp = any(tensor.part is Part.MTP for tensor in opened.contents.tensors)
    drafts = mtp if mtp is not None else opened.shape.num_mtp_layers if has_mtp else 0
    if mtp is not None:
        check_mtp(opened.contents, mtp)
    positions = min(context or USUAL_CONTEXT, opened.shape.max_positions)
    if context is not None and context > positions:
        print_note(
            f"--context {context:,}: {run.model} goes up to {positions:,} tokens, so that is the context"
        )
    demand = Demand(positions, num_drafts=drafts, kv_form=kv)
    told: list[Callable[[str], None]] = [print_note]

    def say(text: str) -> None:
        for tell in told:
            tell(text)

    with opened_run(run, opened, demand, say=say) as found:
        serving = Serving(
            shown_name,
            written_s(run.model),
            positions,
            drafts,
            most_delay,
            most_waiting,
        )
        # The thread of the model and that of the answers take turns. With Python's 5 ms a small
        # model's steps wait for the writer.
        sys.setswitchinterval(_SWITCH_S)
        rank = None
        if cluster is not None or measured_here() is not None:
            rank = partial(rank_on_traffic, cluster, run.model.absolute(), opened.shape)
        with logging_to(sys.stderr):
            serve_until_stopped(found.session, tokenizer, serving, settings, told, rank)


def name_for_clients(given: str | None, model: Path) -> str:
    """The model's name as clients see it.

    Args:
        given: with --name.

    Raises:
        InputError: it is empty, too long, or cannot be printed.
    """
    name = model_name(model) if given is None else given
    if not (0 < len(name) <= _MOST_NAME and name.isprintable() and not name.isspace()):
        where = f"--name {quote(name)}" if given is not None else f"{quote(name)}, the name of --model"
        advice = "" if given is not None else "; give one by --name"
        raise InputError(
            f"{where}: expected 1 to {_MOST_NAME} characters that can be printed, not all blank{advice}"
        )
    return name


def written_s(model: Path) -> int:
    """When the newest of its files with weights was written, seconds since 1970."""
    files = list(model.glob("*.safetensors")) if model.is_dir() else []
    return int(max(file.stat().st_mtime for file in files or [model]))
