"""`potluck down`: end a cluster on all of its boxes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.options import Json
from orchestrator.cli.output import print_error, print_json, print_note
from orchestrator.cluster.down import bring_down
from orchestrator.cluster.launcher_file import load_launcher
from orchestrator.cluster.ssh import Ssh


def down(
    cluster: Annotated[Path, typer.Argument(help="Cluster file.", metavar="CLUSTER")],
    json: Json = False,
) -> None:
    """End a cluster on all its boxes: processes, sockets, shared memory and keys."""
    launcher = load_launcher(cluster)
    with Ssh() as ssh:
        done = bring_down(launcher, ssh)
    if json:
        boxes = {
            name: {
                "clean": box.is_clean,
                "ended": list(box.ended.processes) if box.ended else [],
                "left": list(box.ended.left) if box.ended else [],
                "error": box.error or None,
            }
            for name, box in done.items()
        }
        print_json({"cluster": launcher.name, "boxes": boxes})
    else:
        for name, box in done.items():
            if box.ended is not None:
                count = len(box.ended.processes)
                print_note(f"{name}: ended {count} processes" if count else f"{name}: nothing was running")
    for name, box in done.items():
        if box.error:
            print_error(f"{box.error}; run `potluck down` again when it is reached")
        elif not box.is_clean:
            print_error(
                f"{name}: these processes did not end: {', '.join(box.ended.left if box.ended else ())}"
            )
    if not all(box.is_clean for box in done.values()):
        raise typer.Exit(2)
