"""The commands that start Ray on a box: the cluster file's own, with its token and certificate."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress

import psutil

from orchestrator.cluster.launcher_file import Box, Launcher
from orchestrator.cluster.ray_env import ray_environment
from orchestrator.cluster.ssh import python_of, quoted_path
from placement.errors import BoxUnreachable, ClusterFileError
from placement.files.quote import quote

_GCS = "gcs_server"
# Ray's own launcher brings this file along, which we do not.
_AUTOSCALING = re.compile(r"\s+--autoscaling-config[= ]\S+")
# It would end every Ray of the box, whatever cluster it belongs to.
_STOPS = re.compile(r"\bray\s+stop\b")


def start_script(launcher: Launcher, box: Box) -> str:
    """What `bash` is to run on a box where Ray of this cluster does not run.

    What is left there of an earlier Ray of this cluster goes first. Lines that stop all Rays are left out.

    Raises:
        ClusterFileError: the file has no command that starts Ray there.
    """
    is_head = box.name == launcher.spec.head
    commands = launcher.head_start if is_head else launcher.worker_start
    wanted = [_AUTOSCALING.sub("", command) for command in commands if not _STOPS.search(command)]
    if not any("ray start" in command for command in wanted):
        field = "head_start_ray_commands" if is_head else "worker_start_ray_commands"
        raise ClusterFileError(
            f"{launcher.path}: {field}: expected a line with `ray start` (and `ray stop` in a line of its "
            "own), found none: `potluck init` writes one"
        )
    folder = f'"$HOME"{launcher.remote_folder.removeprefix("~")}'
    lines = [
        "set -e",
        f"export RAY_HEAD_IP={launcher.head.address}",
        *(f"export {name}={value}" for name, value in ray_environment(folder).items()),
        f"{python_of(box)} -m orchestrator.cluster.here end-ray {launcher.name} {ray_address(launcher)} >&2",
        f"export PATH={quoted_path(box.venv)}/bin:$PATH",
        *wanted,
    ]
    return "\n".join(lines)


def ray_address(launcher: Launcher) -> str:
    """Where the cluster's GCS listens."""
    return f"{launcher.head.address}:{launcher.ray_port}"


def check_port(launcher: Launcher) -> None:
    """Raise BoxUnreachable where another program of this box listens at the GCS's port.

    Whose program it is cannot be told where it is another user's.
    """
    address, port = launcher.head.address, launcher.ray_port
    for found in psutil.net_connections("tcp4"):
        if found.status != psutil.CONN_LISTEN or not found.laddr or not found.pid:
            continue
        if found.laddr.port != port or found.laddr.ip not in (address, "0.0.0.0"):
            continue
        with suppress(psutil.Error):
            name = psutil.Process(found.pid).name()
            if name != _GCS:
                raise BoxUnreachable(
                    f"{launcher.head.at}: port {port} is taken by {quote(name)} (process {found.pid}): end "
                    f"it, or give the `ray start` commands of {launcher.path} another port"
                )


def last_word(text: str) -> str:
    """The line by which Ray says what went wrong."""
    lines: Sequence[str] = [line.strip() for line in text.splitlines() if line.strip()]
    telling = [line for line in lines if "rror" in line or "ailed" in line]
    return (telling or lines or ["it said nothing"])[-1]
