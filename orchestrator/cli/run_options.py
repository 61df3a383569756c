"""Options of commands that run a model: which one, where, and with what memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.device import DEVICE_HELP
from orchestrator.cli.residency import RESIDENCY_HELP, Residency
from orchestrator.runnable import DEFAULT_DTYPE, DtypeName
from placement.kv_size import KvForm

Model = Annotated[
    Path | None,
    typer.Option(help="Model directory (config.json, safetensors) or GGUF file; a cluster's by default."),
]
Dtype = Annotated[
    DtypeName | None, typer.Option(help=f"Weights, caches, wire; default the plan's, or {DEFAULT_DTYPE}.")
]
NumWorkers = Annotated[
    int | None, typer.Option(min=0, max=64, help="Equal workers on this machine; 0: all in this process.")
]
Survive = Annotated[
    int, typer.Option(min=0, help="With --workers: how many may be lost without reading from disks.")
]
PlanFile = Annotated[Path | None, typer.Option(help="Plan made by `potluck plan`, instead of --workers.")]
RayAddress = Annotated[
    str | None, typer.Option(help="A running Ray cluster for --plan, such as auto or 10.0.0.1:6379.")
]
SpotCheckShare = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=1,
        help="Share of requests computed twice and compared; 0.001 where two can.",
        metavar="SHARE",
    ),
]
ClusterFile = Annotated[
    Path | None, typer.Option(help="Cluster file, of a cluster that `potluck up` started.")
]
Device = Annotated[str, typer.Option(help=DEVICE_HELP, metavar="DEVICE")]
Stats = Annotated[
    Path | None,
    typer.Option(help="Routing file of `potluck stats`: its hottest experts go where it is fastest."),
]
KeptInVram = Annotated[Residency, typer.Option(help=RESIDENCY_HELP)]


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What was said of a run. Attributes are the options' names."""

    model: Path | None
    plan: Path | None
    ray_address: str | None
    cluster: Path | None
    workers: int | None
    survive: int
    device: str
    dtype: DtypeName | None
    kv: KvForm | None
    stats: Path | None
    residency: Residency
    spot_check: float | None
