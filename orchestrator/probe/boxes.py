"""The boxes a probe measures, and how Python is run on each."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from orchestrator.cluster.launcher_file import Box, Launcher
from orchestrator.cluster.ssh import Ssh, check_key, is_here, quoted_path, why_unreachable
from placement.given.probe import HERE


@dataclass(frozen=True, slots=True)
class ProbedBox:
    """One box.

    Attributes:
        address: that the others reach it at.
        python: the command that runs Potluck's Python there with these arguments.
        folder: the model's, or its file, whose disk is read; "" for the user's home.
        why_unreachable: as `running` takes it.
    """

    name: str
    address: str
    python: Callable[[Sequence[str]], list[str]]
    folder: str = ""
    why_unreachable: Callable[[str], str] | None = None


def this_machine(folder: Path | None = None) -> ProbedBox:
    return ProbedBox(HERE, "127.0.0.1", _local, "" if folder is None else str(folder))


def boxes_of(launcher: Launcher, ssh: Ssh) -> tuple[ProbedBox, ...]:
    """Those of a cluster file, reached over ssh where they are not this machine.

    Raises:
        ClusterFileError: a key that is named there is missing.
    """
    for box in launcher.boxes:
        if not is_here(box.address):
            check_key(box)
    boxes = launcher.boxes
    return tuple(
        ProbedBox(box.name, box.address, _python_on(box, ssh), box.model or "", partial(why_unreachable, box))
        for box in boxes
    )


def _python_on(box: Box, ssh: Ssh) -> Callable[[Sequence[str]], list[str]]:
    # The interpreter of this command serves its own box, whatever the file says of its folder.
    if is_here(box.address):
        return _local
    python = f"exec {quoted_path(box.venv)}/bin/python"
    return lambda arguments: ssh.command(box, f"{python} {shlex.join(arguments)}")


def _local(arguments: Sequence[str]) -> list[str]:
    return [sys.executable, *arguments]
