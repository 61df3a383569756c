"""`potluck update`: one version of Potluck on all boxes of a cluster."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.options import Json
from orchestrator.cli.output import print_json, print_note
from orchestrator.cluster.keeper import end_keeper, start_keeper, wanted_of
from orchestrator.cluster.keys_folder import ensure_keys
from orchestrator.cluster.launcher_file import load_launcher
from orchestrator.cluster.pool import Pool
from orchestrator.cluster.run_state import read_run_state
from orchestrator.cluster.ssh import Ssh
from orchestrator.cluster.up import UP_LOG
from orchestrator.cluster.update import check_wheel, update_boxes


def update(
    cluster: Annotated[Path, typer.Argument(help="Cluster file.", metavar="CLUSTER")],
    wheel: Annotated[Path, typer.Option(help="What `make wheel` put into dist/.")],
    json: Json = False,
) -> None:
    """Install a wheel on the boxes of a running cluster, one after another."""
    check_wheel(wheel)
    launcher = load_launcher(cluster)
    folder = launcher.state_folder
    state = read_run_state(folder)
    keys = ensure_keys(folder, launcher.name, launcher.addresses)

    def tell(line: str) -> None:
        if not json:
            print_note(line)

    done = []
    # It would take a box that is out for one that is lost.
    end_keeper(folder)
    try:
        with Ssh() as ssh:
            pool = Pool(wanted_of(launcher, state), keys, ssh, tell, folder / UP_LOG, started=state.started)
            pool.running = {worker.name: worker for worker in state.workers}
            pool.missing = dict(state.missing)
            try:
                for box in update_boxes(pool, wheel, tell):
                    done.append(box)
                    tell(f"{box.node}: {box.before or 'none'} → {box.after}")
            finally:
                pool.close()
    finally:
        start_keeper(launcher)
    if json:
        print_json({"cluster": launcher.name, "boxes": [asdict(box) for box in done]})
