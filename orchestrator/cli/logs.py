"""`potluck logs`: what a box's worker says, or the head's keeper."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.options import Json
from orchestrator.cli.output import print_json, print_note
from orchestrator.cluster.keeper import KEEPER_LOG
from orchestrator.cluster.launcher_file import Launcher, load_launcher
from orchestrator.cluster.run_state import RUN, read_run_state
from orchestrator.cluster.ssh import Ssh, python_of


def logs(
    cluster: Annotated[Path, typer.Argument(help="Cluster file.", metavar="CLUSTER")],
    node: Annotated[
        str,
        typer.Argument(
            help="Name of a box. The head's gives the log of the keeper, which watches the workers.",
            metavar="NODE",
        ),
    ],
    lines: Annotated[int, typer.Option(min=1, help="How many of the last lines.")] = 100,
    json: Json = False,
) -> None:
    """Print the log of a box's worker process."""
    launcher = load_launcher(cluster)
    box = launcher.box(node)
    if node == launcher.spec.head:
        path = launcher.state_folder / KEEPER_LOG
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    else:
        with Ssh() as ssh:
            command = f"{python_of(box)} -m orchestrator.cluster.here log {launcher.name}"
            text = ssh.check(box, command).decode(errors="replace")
    found = text.splitlines()[-lines:]
    if json:
        print_json({"node": node, "lines": found})
        return
    sys.stdout.writelines(f"{line}\n" for line in found)
    if not found:
        print_note(f"{node}: {_why_none(launcher, node)}")


def _why_none(launcher: Launcher, node: str) -> str:
    """Why a box has no log."""
    if not (launcher.state_folder / RUN).exists():
        return f"no log, because the cluster is not up: `potluck up {launcher.path}` starts it"
    state = read_run_state(launcher.state_folder)
    if node in {state.head, *state.missing, *(worker.node for worker in state.workers)}:
        return f"nothing is logged there so far: `potluck status {launcher.path}` says what runs"
    return "no log, because it is idle: the plan puts no experts there"
