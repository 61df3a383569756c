"""The end of a cluster on all of its boxes: no process, socket, shared memory or key of it is left."""

from __future__ import annotations

import json
from dataclasses import dataclass

from orchestrator.cluster.here import Ended
from orchestrator.cluster.keeper import KEEPER_LOG, LOCK, end_keeper, only_one
from orchestrator.cluster.keys_folder import remove_keys
from orchestrator.cluster.launcher_file import Box, Launcher
from orchestrator.cluster.ray_start import ray_address
from orchestrator.cluster.run_state import RUN
from orchestrator.cluster.ssh import Ssh, python_of, quoted_path
from orchestrator.each_box import each_box
from placement.errors import BoxUnreachable

END_TIMEOUT_S = 60.0
# What the shell returns on a box without this cluster's folder and without Potluck.
_NEVER_HERE = 96


@dataclass(frozen=True, slots=True)
class BoxEnd:
    """What happened on a box: what was ended there, or why nobody knows."""

    ended: Ended | None
    error: str = ""

    @property
    def is_clean(self) -> bool:
        return self.ended is not None and not self.ended.left


def bring_down(launcher: Launcher, ssh: Ssh) -> dict[str, BoxEnd]:
    """End the cluster on every box of the file that is reached; by node.

    Keys go from this box in any case: a box that was not reached keeps its own until `down` runs again.
    """
    folder = launcher.state_folder
    if folder.is_dir():
        # First what would start again what is ended here.
        end_keeper(folder)
        with only_one(folder):
            done = _on_boxes(launcher, ssh)
            for name in (RUN, KEEPER_LOG):
                (folder / name).unlink(missing_ok=True)
            remove_keys(folder)
        (folder / LOCK).unlink(missing_ok=True)
        return done
    return _on_boxes(launcher, ssh)


def end_on_box(launcher: Launcher, ssh: Ssh, box: Box, what: str) -> Ended:
    """End what of the cluster runs on a box.

    Args:
        what: a command of `orchestrator.cluster.here`.

    Raises:
        BoxUnreachable: the box is not reached, or cannot do it.
    """
    python, folder = python_of(box), quoted_path(launcher.remote_folder)
    answer = ssh.run(
        box,
        f"test -e {folder} || {python} -c 'import orchestrator.cluster.here' || exit {_NEVER_HERE}; "
        f"exec {python} -m orchestrator.cluster.here {what} {launcher.name} {ray_address(launcher)}",
        timeout_s=END_TIMEOUT_S,
    )
    if answer.code == _NEVER_HERE:
        return Ended((), ())
    if answer.code:
        raise BoxUnreachable(f"{box.at}: cannot end what runs there: {answer.reason}")
    printed = answer.stdout.decode(errors="replace")
    try:
        fields = json.loads(printed)
        return Ended(tuple(fields["processes"]), tuple(fields["left"]))
    except (ValueError, KeyError, TypeError):
        raise BoxUnreachable(f"{box.at}: expected what was ended there, found {printed[:80]!r}") from None


def _on_boxes(launcher: Launcher, ssh: Ssh) -> dict[str, BoxEnd]:
    found: dict[str, BoxEnd] = {}
    # Workers before the head: their Rays would try to reach it.
    for boxes in (launcher.others, (launcher.head,)):
        done, failed = each_box(boxes, lambda box: end_on_box(launcher, ssh, box, "end"))
        found |= {name: BoxEnd(ended) for name, ended in done.items()}
        found |= {name: BoxEnd(None, str(error)) for name, error in failed.items()}
    return found
