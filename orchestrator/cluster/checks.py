"""What is wrong with a box, from what it says of itself: one line each, with what to do.

Pure functions: `examine.py` asks the boxes.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from orchestrator.cluster.facts import BoxFacts, ModelFacts
from orchestrator.cluster.launcher_file import Box
from orchestrator.cluster.reach import Reach
from placement.units import size

Severity = Literal["error", "warning"]

MOST_CLOCK_DIFFERENCE_S = 60.0
# A certificate is valid from a day before it was made.
_MOST_CLOCK_FOR_TLS_S = 80_000.0
LEAST_DISK_BYTES = {"keys and logs": 100_000_000, "Ray": 1_000_000_000, "shared memory": 300_000_000}
_SLOW_CABLE_MBITS = 100


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong. An error keeps the box from serving; a warning makes it slow or unsafe."""

    box: str
    severity: Severity
    text: str

    @property
    def line(self) -> str:
        return f"{self.box}: {self.text}"


@dataclass(frozen=True, slots=True)
class Expected:
    """What a box should be like.

    Attributes:
        head, ours: the box that starts the cluster, and what it says of itself.
        asked_s, answered_s: this machine's clock before and after the box looked at its own.
        needed_bytes: of memory, for the experts that it is to hold; 0 where that is not known yet.
        reach: None where it was not tried.
    """

    head: Box
    ours: BoxFacts
    asked_s: float
    answered_s: float
    needed_bytes: int = 0
    reach: Reach | None = None


def findings(box: Box, facts: BoxFacts, expected: Expected) -> list[Finding]:
    """All that is wrong with a box, errors first."""
    found = [
        *_software(facts, expected.ours),
        *_clock(facts, expected),
        *_address(box, facts),
        *_ports(box, facts),
        *_reached(box, expected),
        *_network(box, facts),
        *_model(box, facts.model, expected),
        *_memory(facts, expected),
        *_disks(facts),
        *_power(facts),
    ]
    made = [Finding(box.name, severity, text) for severity, text in found]
    return sorted(made, key=lambda finding: finding.severity != "error")


_Found = Iterator[tuple[Severity, str]]


def _software(facts: BoxFacts, ours: BoxFacts) -> _Found:
    if facts.system != "Linux":
        yield "error", f"it runs {facts.system}, expected Linux: plan and study there, run elsewhere"
    same, other = ours.python.split("."), facts.python.split(".")
    if other[:2] != same[:2]:
        yield (
            "error",
            f"Python {facts.python} there, {ours.python} on the head: Ray joins boxes of one version only; "
            f"make its environment anew with python{'.'.join(same[:2])}",
        )
    elif facts.python != ours.python:
        yield "warning", f"Python {facts.python} there, {ours.python} on the head: Ray may complain"
    if not facts.ray:
        yield "error", f"Ray is not installed there: pip install ray=={ours.ray} in its environment"
    elif facts.ray != ours.ray:
        yield (
            "error",
            f"Ray {facts.ray} there, {ours.ray} on the head: pip install ray=={ours.ray} in its environment",
        )
    if facts.potluck != ours.potluck:
        yield (
            "error",
            f"Potluck {facts.potluck} there, {ours.potluck} on the head: run `potluck update` on the head",
        )
    elif facts.code != ours.code:
        yield (
            "error",
            f"another Potluck {facts.potluck} there than on the head (its files differ): run "
            "`potluck update` on the head",
        )


def _clock(facts: BoxFacts, expected: Expected) -> _Found:
    ahead_s = facts.clock_s - min(max(facts.clock_s, expected.asked_s), expected.answered_s)
    if abs(ahead_s) <= MOST_CLOCK_DIFFERENCE_S:
        return
    severity: Severity = "error" if abs(ahead_s) > _MOST_CLOCK_FOR_TLS_S else "warning"
    way = "ahead" if ahead_s > 0 else "behind"
    yield (
        severity,
        f"its clock is {_span(abs(ahead_s))} {way}: let it be set over the network (sudo timedatectl set-ntp "
        "true)",
    )


def _span(seconds: float) -> str:
    for unit, length in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} seconds"


def _address(box: Box, facts: BoxFacts) -> _Found:
    if box.address not in facts.addresses and not box.address.startswith("127."):
        yield (
            "error",
            f"{box.address} is not an address of it ({', '.join(facts.addresses) or 'it has none'}): give "
            "the one that it has on the network of the other boxes",
        )


def _ports(box: Box, facts: BoxFacts) -> _Found:
    for port in facts.ports:
        holder = f" by {port.holder}" if port.holder else ""
        if "in use" in port.why:
            what = f"port {port.port} is in use{holder}: end that, or choose another port in the file"
        else:
            what = f"cannot listen on {box.address}:{port.port}: {port.why}"
        yield "error", what


def _reached(box: Box, expected: Expected) -> _Found:
    if expected.reach is None:
        return
    head = expected.head
    for why, to, come_from, where in (
        (expected.reach.to_box, box, head, box),
        (expected.reach.from_box, head, box, head),
    ):
        if why:
            yield (
                "error",
                f"ports closed: {come_from.at} cannot connect to {to.at} ({why}): a firewall stands between; "
                f"on {where.name} run `sudo ufw allow from {come_from.address}`, or the like of its firewall",
            )


def _network(box: Box, facts: BoxFacts) -> _Found:
    route = facts.route
    if route is None:
        return
    if route.is_wireless and box.network == "cable":
        yield (
            "warning",
            f"it is on Wi-Fi ({route.interface}) where the file expects a cable: plug the cable in and turn "
            "Wi-Fi off there, or write `network: wifi`",
        )
    elif route.is_wireless and box.network is None:
        yield (
            "warning",
            f"it is on Wi-Fi ({route.interface}): a token waits for it ten times as long as over a cable; "
            "`network: wifi` in the file says that this is meant",
        )
    elif 0 < route.mbits_per_s <= _SLOW_CABLE_MBITS:
        yield (
            "warning",
            f"its cable runs at {route.mbits_per_s} Mbit/s ({route.interface}): look at cable, plugs and "
            "switch; most make 1,000",
        )


def _model(box: Box, model: ModelFacts | None, expected: Expected) -> _Found:
    ours = expected.ours.model
    if model is None or ours is None:
        return
    get = f"on {expected.head.name} run `{_rsync(box, ours.path, model.path)}`"
    if not model.is_there:
        yield "error", f"model missing: nothing at {model.path}: {get}, or give the node's `model`"
    elif model.error:
        yield "error", f"model not usable: {model.error}: {get}"
    elif not ours.identity:
        return
    elif model.identity != ours.identity:
        yield "error", f"another model at {model.path} than on the head: {_differs(ours, model)}: {get}"
    else:
        common = [name for name in ours.whole if name in model.whole]
        changed = [name for name in common if ours.whole[name] != model.whole[name]]
        if changed:
            command = _rsync(box, ours.path, model.path, "--checksum")
            yield (
                "error",
                f"damaged model: {changed[0]} has other bytes than on the head, by the digests of both: on "
                f"{expected.head.name} run `{command}`",
            )


def _differs(ours: ModelFacts, model: ModelFacts) -> str:
    for name, digest in ours.files.items():
        if name not in model.files:
            return f"{name} is not part of it"
        if model.files[name] != digest:
            return f"{name} differs"
    extra = next((name for name in model.files if name not in ours.files), None)
    return f"it has {extra} in addition" if extra else "its files are in another order"


def _rsync(box: Box, source: str, target: str, *options: str) -> str:
    """How a model gets from the head to a box."""
    user = f"{box.user}@" if box.user else ""
    shell = f" -e 'ssh -p {box.port}'" if box.port != 22 else ""
    # A directory's content, whatever either is called.
    end = "" if source.endswith(".gguf") else "/"
    words = (f"{source}{end}", f"{user}{box.address}:{target}{end}")
    return f"rsync -a --partial{shell} {' '.join(map(shlex.quote, (*options, *words)))}"


def _memory(facts: BoxFacts, expected: Expected) -> _Found:
    if facts.memory_free_bytes < expected.needed_bytes:
        yield (
            "error",
            f"not enough memory: {size(expected.needed_bytes)} of experts are to lie there, "
            f"{facts.memory_told_by} leaves {size(facts.memory_free_bytes)}: close programs there, or plan "
            "again (`potluck probe`, then `potluck plan`)",
        )


def _disks(facts: BoxFacts) -> _Found:
    for disk in facts.disks:
        least = LEAST_DISK_BYTES[disk.what]
        if disk.free_bytes < least:
            yield (
                "error",
                f"disk full: {disk.path} ({disk.what}) has {size(disk.free_bytes)} left, expected "
                f"{size(least)}: make room",
            )


def _power(facts: BoxFacts) -> _Found:
    if facts.on_battery:
        yield "warning", "it runs on its battery, which slows it down and ends: plug it in"
    if facts.governor:
        yield (
            "warning",
            f"its processor is kept slow (governor {facts.governor}): sudo cpupower frequency-set -g "
            "performance",
        )
