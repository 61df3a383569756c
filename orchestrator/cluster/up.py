"""From a cluster file to workers that serve: what `potluck up` does, step by step."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from orchestrator.cluster.examine import examine
from orchestrator.cluster.keeper import end_keeper, only_one, start_keeper
from orchestrator.cluster.keys_folder import ClusterKeys, ensure_keys
from orchestrator.cluster.launcher_file import Launcher
from orchestrator.cluster.meanwhile import told_meanwhile
from orchestrator.cluster.pool import Pool, Tell, Wanted
from orchestrator.cluster.private_files import write_private
from orchestrator.cluster.run_state import PLAN, RUN, RunState, write_run_state
from orchestrator.cluster.ssh import Ssh, is_here
from orchestrator.cluster.status import lost_experts
from orchestrator.launch.python import python_command, python_environment
from placement.errors import BoxUnreachable, ClusterFileError, PotluckError
from placement.files.quote import last_line
from placement.given.cluster_file import load_known_cluster
from placement.model_shape import ModelShape
from placement.plan import Plan
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
    plan: Plan
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
    # What is wrong with these is told before anything takes long, and before anything changes.
    shape = find_model(model).config.shape(model_name(model))
    keys = ensure_keys(folder, launcher.name, launcher.addresses)
    began_s = time.monotonic()
    chosen = _choose(launcher, model, shape, plan_path, survive, ssh, tell)
    seconds["plan"] = time.monotonic() - began_s
    wanted = Wanted(launcher, chosen.plan, folder / PLAN, shape, model.resolve())
    # The keeper would bring up what is brought up here.
    end_keeper(folder)
    try:
        with only_one(folder):
            if chosen.content is not None:
                write_private(folder / PLAN, chosen.content)
            pool = _raise(wanted, keys, ssh, tell)
            seconds |= pool.seconds
            write_run_state(folder, pool.state())
    finally:
        # Workers of before end after a while without one.
        keeper = start_keeper(launcher) if (folder / RUN).exists() else 0
    serving = {worker.name for worker in pool.state().workers if worker.node not in pool.missing}
    return Raised(pool.state(), wanted.plan, lost_experts(wanted, serving), keeper, seconds)


def _raise(wanted: Wanted, keys: ClusterKeys, ssh: Ssh, tell: Tell) -> Pool:
    pool = Pool(wanted, keys, ssh, tell, wanted.launcher.state_folder / UP_LOG)
    try:
        pool.bring_up([box.name for box in wanted.launcher.boxes])
    finally:
        pool.close()
    return pool


@dataclass(frozen=True, slots=True)
class _Chosen:
    """A plan that fits, and its file's content; None where the cluster has it already."""

    plan: Plan
    content: bytes | None


def _choose(
    launcher: Launcher,
    model: Path,
    shape: ModelShape,
    given: Path | None,
    survive: int | None,
    ssh: Ssh,
    tell: Tell,
) -> _Chosen:
    """The plan that is given, the one in use, or a new one. Nothing is written."""
    in_use = launcher.state_folder / PLAN
    if given is not None:
        return _checked(given, launcher, model, shape, is_new=True)
    if survive is None and _is_for(in_use, model, launcher):
        return _checked(in_use, launcher, model, shape, is_new=False)
    unusable = _look(launcher, model, ssh)
    _probe_if_needed(launcher, unusable, tell)
    for line in unusable:
        tell(f"missing: {line}")
    tell("planning")
    with TemporaryDirectory() as folder:
        made = Path(folder) / PLAN
        extra = () if survive is None else ("--survive", str(survive))
        _potluck(
            "plan", str(launcher.path), "--model", str(model), "--out", str(made), "--no-predict", *extra
        )
        return _checked(made, launcher, model, shape, is_new=True)


def _checked(path: Path, launcher: Launcher, model: Path, shape: ModelShape, *, is_new: bool) -> _Chosen:
    plan = read_plan(path)
    plan.check(shape)
    check_made_for(plan, model)
    unknown = [worker.node for worker in plan.workers if worker.node not in launcher.addresses]
    if unknown:
        raise ClusterFileError(
            f"{path}: a plan for node {unknown[0]!r}, which {launcher.path} does not have: plan again with "
            "this file"
        )
    check_head(plan, path, launcher)
    return _Chosen(plan, path.read_bytes() if is_new else None)


def check_head(plan: Plan, path: Path, launcher: Launcher) -> None:
    """Raise ClusterFileError for a plan, read from `path`, with the head on another box than the file's."""
    if plan.local_worker is None:
        return
    head, planned = launcher.head.name, plan.workers[plan.local_worker].node
    if planned != head:
        raise ClusterFileError(
            f"{path}: a plan with the head on {planned}, but {launcher.path} has it on {head}: set "
            f"`head: {planned}` there and run `potluck up` on that box, or plan with --head {head}"
        )


def _look(launcher: Launcher, model: Path, ssh: Ssh) -> list[str]:
    """What keeps boxes out, a line each, before anything takes long.

    Raises:
        BoxUnreachable: this box itself cannot be used.
    """
    lines = []
    for examined in examine(launcher, ssh, model=str(model.resolve())):
        errors = [finding.line for finding in examined.findings if finding.severity == "error"]
        if errors and examined.box == launcher.head:
            raise BoxUnreachable(errors[0])
        lines += errors[:1]
    return lines


def _probe_if_needed(launcher: Launcher, unusable: Sequence[str], tell: Tell) -> None:
    """Measure the boxes where neither the file nor an earlier probe has figures of them.

    Raises:
        BoxUnreachable: one of them cannot be used, so it cannot be measured.
    """
    try:
        load_known_cluster(launcher.path)
    except ClusterFileError:
        if unusable:
            raise BoxUnreachable(
                f"{'; '.join(unusable)}; not all boxes of {launcher.path} have been measured, and that "
                "needs each of them: mend what is wrong, or take boxes out"
            ) from None
        tell("measuring the boxes and their links")
        with told_meanwhile("measuring", tell):
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
        python_command("orchestrator.cli.main", *arguments, "--json"),
        env=python_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = last_line(done.stderr).removeprefix("error: ")
        raise PotluckError(said or f"potluck {arguments[0]}: no word of why")
