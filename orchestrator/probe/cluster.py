"""Measures boxes side by side, then the head's software, then the links one after another."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

from pydantic import ValidationError

from orchestrator.probe.boxes import ProbedBox
from orchestrator.probe.child import Child, running
from orchestrator.probe.head_times import HeadTimes
from orchestrator.probe.software import head_software
from placement.errors import BoxUnreachable, PotluckError
from placement.given.probe_figures import HeadSoftware, Link, Node, Probe

Found = TypeVar("Found")

Tell = Callable[[str, str], None]
"""Called with a box's name and what is measured there now, from any thread."""

NODE_S, HEAD_S, LINKS_S = 9.0, 3.0, 4.0
"""About how long each part may take; with the starts of Python it is within 20 s."""
_LEAST_LINK_S, _MOST_LINK_S = 0.5, 2.0


@dataclass(frozen=True, slots=True)
class Probed:
    """`failed`: boxes that could not be measured, or not be reached from the head, and why in a line."""

    probe: Probe
    failed: Mapping[str, str]


def probe_cluster(
    boxes: Sequence[ProbedBox], head: str, forms: Sequence[str], tell: Tell, *, side_by_side: bool = True
) -> Probed:
    """Measure all of it now.

    Args:
        head: name of the box that asks the others.
        forms: of weights; empty for the usual ones.
        side_by_side: boxes at once; one after another where they share a machine.

    Raises:
        PotluckError: the head's own box could not be measured.
    """
    named = {box.name: box for box in boxes}
    nodes, failed = _each(
        boxes, lambda box: measure_node(box, forms, tell), at_once=len(boxes) if side_by_side else 1
    )
    if head in failed:
        raise BoxUnreachable(failed[head])
    software = measure_software(named[head], nodes[head], tell)
    others = [box for box in boxes if box.name != head and box.name in nodes]
    links: dict[str, Link] = {}
    if others:
        links, unreached = measure_links(named[head], others, tell)
        failed |= unreached
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Probed(Probe(date=now, head=head, nodes=nodes, links=links, software=software), failed)


def fingerprints(boxes: Sequence[ProbedBox]) -> tuple[dict[str, str], dict[str, str]]:
    """What each box is now, by name, and why some could not be asked: nothing is measured."""

    def ask(box: ProbedBox) -> str:
        with running(box.name, box.python(["-m", "workers.probe", "--fingerprint"])) as child:
            return child.line()

    return _each(boxes, ask, at_once=len(boxes))


def measure_node(box: ProbedBox, forms: Sequence[str], tell: Tell, seconds: float = NODE_S) -> Node:
    """One box, by itself.

    Raises:
        BoxUnreachable: its probe did not run to its end.
    """
    arguments = ["-m", "workers.probe", "--seconds", f"{seconds:g}"]
    if forms:
        arguments += ["--forms", ",".join(forms)]
    if box.folder:
        arguments += ["--folder", box.folder]
    with running(box.name, box.python(arguments), lambda said: tell(box.name, said)) as child:
        return _valid(box.name, lambda: Node.model_validate(child.receive()))


def measure_software(box: ProbedBox, node: Node, tell: Tell, seconds: float = HEAD_S) -> HeadSoftware:
    """The head's software on its box.

    Raises:
        BoxUnreachable: as `measure_node`.
    """
    tell(box.name, "the head's software")
    arguments = ["-m", "orchestrator.probe.head", f"{seconds:g}", str(node.threads)]
    with running(box.name, box.python(arguments)) as child:
        times = _valid(box.name, lambda: HeadTimes.model_validate(child.receive()))
    return head_software(times, node)


def measure_links(
    head: ProbedBox, others: Sequence[ProbedBox], tell: Tell
) -> tuple[dict[str, Link], dict[str, str]]:
    """From the head to each other box; and why some could not be measured.

    Raises:
        BoxUnreachable: the head's own end does not run.
    """
    seconds = min(_MOST_LINK_S, max(_LEAST_LINK_S, LINKS_S / len(others)))
    one_at_a_time = threading.Lock()
    with running(head.name, head.python(["-m", "workers.probe.trips"])) as trips:
        public_key = str(_field(head.name, trips.receive(), "public_key"))

        def measure(box: ProbedBox) -> Link:
            with running(box.name, box.python(["-m", "workers.probe.echo"])) as echo:
                endpoint = f"tcp://{box.address}:*"
                echo.send({"endpoints": [endpoint], "head_public": public_key, "encrypted": [True]})
                info = echo.receive()
                with one_at_a_time:
                    tell(box.name, "its link")
                    return _link(box, trips, info, seconds)

        return _each(others, measure, at_once=len(others))


def _link(box: ProbedBox, trips: Child, info: object, seconds: float) -> Link:
    endpoints, key = _field(box.name, info, "endpoints"), _field(box.name, info, "public_key")
    if not isinstance(endpoints, list) or len(endpoints) != 1:
        raise BoxUnreachable(f"{box.name}: expected an echo's endpoint, found something else")
    trips.send({"endpoint": str(endpoints[0]), "public_key": str(key), "seconds": seconds})
    answer = trips.receive()
    if isinstance(answer, dict) and "failed" in answer:
        raise BoxUnreachable(
            f"{box.name} ({box.address}): the head does not reach it: {answer['failed']}: a firewall?"
        )
    return _valid(box.name, lambda: Link.model_validate(_field(box.name, answer, "link")))


def _each(
    boxes: Sequence[ProbedBox], function: Callable[[ProbedBox], Found], *, at_once: int
) -> tuple[dict[str, Found], dict[str, str]]:
    """What `function` gives of each box, by name, and why it failed on others."""
    found: dict[str, Found] = {}
    failed: dict[str, str] = {}

    def attempt(box: ProbedBox) -> None:
        try:
            found[box.name] = function(box)
        except PotluckError as error:
            failed[box.name] = str(error)

    with ThreadPoolExecutor(max(1, at_once)) as pool:
        list(pool.map(attempt, boxes))
    # In the boxes' order, whoever was first.
    return {box.name: found[box.name] for box in boxes if box.name in found}, failed


def _field(name: str, document: object, field: str) -> object:
    if not isinstance(document, dict) or field not in document:
        raise BoxUnreachable(
            f"{name}: expected its {field}, found something else: is Potluck the same there?"
        )
    return document[field]


def _valid(name: str, read: Callable[[], Found]) -> Found:
    try:
        return read()
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise BoxUnreachable(
            f"{name}: its probe answered {where}: {first['msg']}: is Potluck the same there?"
        ) from None
