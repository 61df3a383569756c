"""Brings one version of Potluck to all boxes, one after another, so that the others go on serving."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from orchestrator.cluster.down import end_on_box
from orchestrator.cluster.keeper import only_one
from orchestrator.cluster.launcher_file import Box, Launcher
from orchestrator.cluster.pool import Pool, Tell
from orchestrator.cluster.run_state import write_run_state
from orchestrator.cluster.ssh import Ssh, python_of, quoted_path
from orchestrator.cluster.status import lost_experts
from placement.errors import BoxUnreachable, InputError

INSTALL_TIMEOUT_S = 600.0
_VERSION = "from importlib.metadata import version; print(version('potluck-moe'))"


@dataclass(frozen=True, slots=True)
class Updated:
    """A box: the version it had, "" for none, and the one it has now. `restarted`: its worker, to use it."""

    node: str
    before: str
    after: str
    restarted: bool


def check_wheel(wheel: Path) -> str:
    """The version of a wheel of Potluck.

    Raises:
        InputError: it is not one.
    """
    name, _, rest = wheel.name.partition("-")
    if not wheel.is_file() or name != "potluck_moe" or wheel.suffix != ".whl":
        raise InputError(f"{wheel}: expected a wheel of Potluck, which `make wheel` puts into dist/")
    return rest.partition("-")[0]


def installed_version(ssh: Ssh, box: Box) -> str:
    """Of Potluck on a box, "" where it has none.

    Raises:
        BoxUnreachable: it is not reached.
    """
    answer = ssh.run(box, f"{python_of(box)} -c {_quoted(_VERSION)}")
    return answer.stdout.decode().strip() if answer.code == 0 else ""


def install(ssh: Ssh, box: Box, launcher: Launcher, wheel: Path) -> None:
    """Put a wheel onto a box and install it; what Potluck needs is there already.

    Raises:
        BoxUnreachable: it is not reached, or the wheel does not install there.
    """
    place = f"{launcher.remote_folder}/{wheel.name}"
    ssh.copy(box, wheel, place, timeout_s=INSTALL_TIMEOUT_S)
    path = quoted_path(place)
    pip = f"{python_of(box)} -m pip install --quiet --no-deps --force-reinstall {path}"
    ssh.check(box, f"{pip}; code=$?; rm -f {path}; exit $code", timeout_s=INSTALL_TIMEOUT_S)


def update_boxes(pool: Pool, wheel: Path, tell: Tell) -> Iterator[Updated]:
    """Install on one box after another, and start what ran there anew with it.

    A box is out only while it is installed and loads. Meanwhile its experts come from other holders, where
    the plan has any, or from disks. The head's own commands use the version from their next start on.

    Raises:
        BoxUnreachable: a box did not come back; those before it are done, those behind it untouched.
    """
    launcher, folder = pool.wanted.launcher, pool.wanted.launcher.state_folder
    wanted = check_wheel(wheel)
    # The head first: a box that comes back is held to the head's version.
    for box in (launcher.head, *launcher.others):
        before = installed_version(pool.ssh, box)
        worker = next((name for name, running in pool.running.items() if running.node == box.name), None)
        if worker is not None:
            serving = {name for name, running in pool.running.items() if running.node not in pool.missing}
            alone = lost_experts(pool.wanted, serving - {worker})
            if alone:
                tell(f"{box.name}: {alone:,} experts have no other holder and come from disks meanwhile")
        install(pool.ssh, box, launcher, wheel)
        after = installed_version(pool.ssh, box)
        if after != wanted:
            raise BoxUnreachable(
                f"{box.at}: expected version {wanted} after installing, found {after or 'none'}"
            )
        if worker is not None:
            # Its worker comes back at the same ports, where a run waits for it.
            end_on_box(launcher, pool.ssh, box, "end-processes")
            with only_one(folder):
                pool.bring_up([box.name])
                write_run_state(folder, pool.state())
            if box.name in pool.missing:
                raise BoxUnreachable(pool.missing[box.name])
        yield Updated(box.name, before, after, worker is not None)


def _quoted(program: str) -> str:
    return '"' + program.replace('"', '\\"') + '"'
