"""From a cluster file to workers that serve: what `potluck up` does, step by step."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.cluster.keeper import end_keeper, only_one, start_keeper
from orchestrator.cluster.keys_folder import ClusterKeys, ensure_keys
from orchestrator.cluster.launcher_file import Launcher
from orchestrator.cluster.pool import Pool, Tell, Wanted
from orchestrator.cluster.run_state import PLAN, RunState, write_run_state
from orchestrator.cluster.ssh import Ssh, is_here
from orchestrator.cluster.status import lost_experts
from orchestrator.launch.detached import ROOT
from placement.errors import ClusterFileError, PotluckError
from placement.given.cluster_file import check_figures
from placement.given.probe import probe_path
from placement.plan_file import read_plan
from workers.formats.identity import check_made_for
from workers.formats.open_model import find_model, model_name

UP_LOG = "up.log"


@dataclass(slots=True)
class Raised:
    """What `raise_cluster` gave.

    `lost_experts`: which no box holds; the cluster is usable where there are none. `seconds`: by stage.
    """

    state: RunState
    lost_experts: int
    keeper: int
    seconds: dict[str, float] = field(default_factory=dict)


def raise_cluster(
    launcher: Launcher, model: Path, plan_path: Path | None, survive: int | None, ssh: Ssh, tell: Tell
) -> Raised:
    """Bring up what is there of a cluster, and leave a keeper that takes in what comes later.

    Args:
        plan_path: of a plan for these boxes; None makes one, and the probe that it needs, where the cluster
            has none for this model yet.
        survive: how many boxes the plan is to survive the loss of; the planner's default where left out.

    Raises:
        ClusterFileError: this is not the head's box.
        PotluckError: Ray does not start here, or there is no plan.
    """
    head = launcher.head
    if not is_here(head.address):
        raise ClusterFileError(
            f"{launcher.path}: head: {head.name} is at {head.address}, which is not this box: run "
            "`potluck up` there, or name this box as head"
        )
    seconds: dict[str, float] = {}
    folder = launcher.state_folder
    keys = ensure_keys(folder, launcher.name, launcher.addresses)
    # The keeper would bring up what is brought up here.
    end_keeper(folder)
    with only_one(folder):
        began_s = time.monotonic()
        wanted = _wanted(launcher, model, plan_path, survive, tell)
        seconds["plan"] = time.monotonic() - began_s
        pool = _raise(wanted, keys, ssh, tell)
        seconds |= pool.seconds
        write_run_state(folder, pool.state())
    keeper = start_keeper(launcher)
    serving = {worker.name for worker in pool.state().workers if worker.node not in pool.missing}
    return Raised(pool.state(), lost_experts(wanted, serving), keeper, seconds)


def _raise(wanted: Wanted, keys: ClusterKeys, ssh: Ssh, tell: Tell) -> Pool:
    pool = Pool(wanted, keys, ssh, tell, wanted.launcher.state_folder / UP_LOG)
    try:
        pool.bring_up([box.name for box in wanted.launcher.boxes])
    finally:
        pool.close()
    return pool


def _wanted(launcher: Launcher, model: Path, given: Path | None, survive: int | None, tell: Tell) -> Wanted:
    path = launcher.state_folder / PLAN
    if given is not None:
        content = given.read_bytes() if given.is_file() else b""
        plan = read_plan(given)
        path.write_bytes(content)
    else:
        if survive is not None or not _is_for(path, model, launcher):
            _probe_if_needed(launcher, tell)
            tell("planning")
            extra = () if survive is None else ("--survive", str(survive))
            _potluck("plan", str(launcher.path), "--model", str(model), "--out", str(path), *extra)
        plan = read_plan(path)
    shape = find_model(model).config.shape(model_name(model))
    plan.check(shape)
    check_made_for(plan, model)
    unknown = [worker.node for worker in plan.workers if worker.node not in launcher.addresses]
    if unknown:
        raise ClusterFileError(
            f"{given or path}: a plan for node {unknown[0]!r}, which {launcher.path} does not have: plan "
            "again with this file"
        )
    return Wanted(launcher, plan, path, shape, model.resolve())


def _probe_if_needed(launcher: Launcher, tell: Tell) -> None:
    """Measure the boxes where the file has no figures of them, unless that was done."""
    try:
        check_figures(launcher.spec, launcher.path)
    except ClusterFileError:
        if not probe_path(launcher.path).exists():
            tell("measuring the boxes and their links, at most 20 s")
            _potluck("probe", str(launcher.path))


def _is_for(path: Path, model: Path, launcher: Launcher) -> bool:
    """Whether the plan that the cluster had last is for this model and newer than the cluster file."""
    if not path.exists() or path.stat().st_mtime < launcher.path.stat().st_mtime:
        return False
    try:
        check_made_for(read_plan(path), model)
    except PotluckError:
        return False
    return True


def _potluck(*arguments: str) -> None:
    """Run another command of this program, which says by itself what is wrong."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", _RUN, *arguments, "--json"],
        cwd=Path.cwd(),
        env=None,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lines: Sequence[str] = done.stderr.strip().splitlines() or ["it said nothing"]
        raise PotluckError(f"potluck {arguments[0]}: {lines[-1].removeprefix('error: ')}")


_RUN = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from orchestrator.cli.main import main; main()"
