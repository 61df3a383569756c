"""Asks all boxes of a cluster what they are like, and says what is wrong with each."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from orchestrator.cluster.checks import Expected, Finding, findings
from orchestrator.cluster.facts import BoxFacts, Question, gather
from orchestrator.cluster.launcher_file import Box, Launcher
from orchestrator.cluster.reach import Reach, try_reach
from orchestrator.cluster.ssh import Ssh, is_here, python_of
from orchestrator.each_box import each_box
from placement.errors import BoxUnreachable, ClusterFileError, PotluckError

FACTS_TIMEOUT_S = 60.0
# What the shell returns where there is no such interpreter; no command of ours does.
_NO_PYTHON = 97


@dataclass(frozen=True, slots=True)
class Examined:
    """A box, what it says of itself (None where it cannot be asked), and what is wrong with it."""

    box: Box
    facts: BoxFacts | None
    findings: tuple[Finding, ...]

    @property
    def is_usable(self) -> bool:
        return all(finding.severity != "error" for finding in self.findings)


@dataclass(frozen=True, slots=True)
class _Told:
    facts: BoxFacts
    asked_s: float
    answered_s: float
    reach: Reach | None


def examine(
    launcher: Launcher,
    ssh: Ssh,
    *,
    model: str = "",
    ports: Mapping[str, Sequence[int]] | None = None,
    needed_bytes: Mapping[str, int] | None = None,
    boxes: Sequence[Box] | None = None,
) -> tuple[Examined, ...]:
    """Look at all boxes at once, from the head's.

    Args:
        model: its path on the head, and on every box that the file gives no other for; "" for none.
        ports: by node, that something is to listen on there.
        needed_bytes: by node, of memory for experts.
        boxes: some of the file's; all of them by default.

    Raises:
        ClusterFileError: this machine is not the head's box.
    """
    head = launcher.head
    if not is_here(head.address):
        raise ClusterFileError(
            f"{launcher.path}: the head is {head.at}, which is not this machine: run this there, or make "
            "this machine's node the `head`"
        )
    asked = launcher.boxes if boxes is None else tuple(boxes)
    ports, needed_bytes = ports or {}, needed_bytes or {}

    def question(box: Box) -> Question:
        peers = [other.address for other in launcher.others] if box == head else [head.address]
        return Question(
            address=box.address,
            peer=peers[0] if peers else "",
            model=(box.model or model) if model else "",
            ports=tuple(ports.get(box.name, ())),
        )

    ours = gather(question(head))

    def ask(box: Box) -> _Told:
        asked_s = time.time()
        if box == head:
            return _Told(ours, ours.clock_s, ours.clock_s, None)
        facts = ask_facts(ssh, box, question(box))
        return _Told(facts, asked_s, time.time(), try_reach(ssh, box, head.address))

    done, failed = each_box(asked, ask)
    told: dict[str, _Told | PotluckError] = {**done, **failed}
    return tuple(_examined(box, told[box.name], head, ours, needed_bytes.get(box.name, 0)) for box in asked)


def ask_facts(ssh: Ssh, box: Box, question: Question) -> BoxFacts:
    """What a box says of itself.

    Raises:
        BoxUnreachable: it is not reached, has no Potluck, or another one; says what to do.
    """
    python = python_of(box)
    answer = ssh.run(
        box,
        f"test -x {python} || exit {_NO_PYTHON}; exec {python} -m orchestrator.cluster.facts",
        stdin=json.dumps(asdict(question)).encode(),
        timeout_s=FACTS_TIMEOUT_S,
    )
    if answer.code == _NO_PYTHON:
        raise BoxUnreachable(
            f"{box.at}: no Python environment at {box.venv}: install Potluck there (`python3 -m venv "
            f"{box.venv}`, then pip install the head's wheel), or give the node's `venv`"
        )
    if "No module named" in answer.stderr:
        raise BoxUnreachable(
            f"{box.at}: the environment {box.venv} has no Potluck, or an older one: run `potluck update` on "
            "the head, or pip install the head's wheel there"
        )
    if answer.code:
        raise BoxUnreachable(f"{box.at}: cannot say what it is like: {answer.reason}")
    try:
        return BoxFacts.from_json(json.loads(answer.stdout))
    except (ValueError, KeyError, TypeError):
        raise BoxUnreachable(
            f"{box.at}: another version of Potluck at {box.venv}: run `potluck update` on the head"
        ) from None


def _examined(box: Box, told: _Told | PotluckError, head: Box, ours: BoxFacts, needed_bytes: int) -> Examined:
    if isinstance(told, PotluckError):
        text = str(told).removeprefix(f"{box.at}: ")
        return Examined(box, None, (Finding(box.name, "error", text),))
    expected = Expected(head, ours, told.asked_s, told.answered_s, needed_bytes, told.reach)
    return Examined(box, told.facts, tuple(findings(box, told.facts, expected)))
