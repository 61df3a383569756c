"""Measures boxes side by side, then the head's software, then the links one after another, in 20 s."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

from pydantic import ValidationError

from orchestrator.each_box import each_box
from orchestrator.probe.boxes import ProbedBox
from orchestrator.probe.child import Child, running
from orchestrator.probe.head_times import READY, HeadTimes
from orchestrator.probe.software import head_software
from placement.errors import BoxUnreachable
from placement.given.probe_figures import HeadSoftware, Link, Node, Probe
from workers.probe.time_left import TimeLeft

Found = TypeVar("Found")

Tell = Callable[[str, str], None]
"""Called with a box's name and what is measured there now, from any thread."""

TOTAL_S = 20.0
"""For all of it, with the starts of Python; where these take long, what is left is too little to keep it."""
NODE_S, HEAD_S, LINKS_S = 8.0, 3.0, 3.5
"""Of each part by itself; together they share the time that the starts leave in these proportions."""
_LEAST_S = 3.0
_END_S = 1.0
_TRIPS, _ECHO = ("-m", "workers.probe.trips"), ("-m", "workers.probe.echo")
_HEAD = ("-m", "orchestrator.probe.head")


@dataclass(frozen=True, slots=True)
class Probed:
    """`failed`: boxes that could not be measured, or not be reached from the head, and why in a line.

    `start_s`: until Python had started everywhere; `seconds`: all of it, with that.
    """

    probe: Probe
    failed: Mapping[str, str]
    start_s: float
    seconds: float


def probe_cluster(
    boxes: Sequence[ProbedBox], head: str, forms: Sequence[str], tell: Tell, total_s: float = TOTAL_S
) -> Probed:
    """Measure all of it now, in `total_s`: where that is short, each thing gets fewer turns.

    Args:
        head: name of the box that asks the others.
        forms: of weights; empty for the usual ones.

    Raises:
        PotluckError: the head's own box could not be measured.
    """
    began_s = time.monotonic()
    own = next(box for box in boxes if box.name == head)
    others = [box for box in boxes if box.name != head]
    with ExitStack() as stack:
        # All start at once, and nothing is measured while one is starting.
        asked, failed = _opened(stack, boxes, lambda box: _node_command(box, forms), tell)
        if head in failed:
            raise BoxUnreachable(failed[head])
        software = stack.enter_context(running(head, own.python(_HEAD)))
        links = stack.enter_context(_links(own, [box for box in others if box.name not in failed]))
        ready, late = _each(
            [box for box in boxes if box.name in asked], lambda box: _ready(box, asked[box.name])
        )
        failed |= late
        if head in failed:
            raise BoxUnreachable(failed[head])
        _ready(own, software)
        links.wait()
        start_s = time.monotonic() - began_s
        left = TimeLeft(
            max(_LEAST_S, total_s - _END_S - start_s),
            {"nodes": NODE_S, "head": HEAD_S} | ({"links": LINKS_S} if others else {}),
        )
        seconds = left.next("nodes")
        nodes, bad = _each(
            [box for box in boxes if box.name in ready], lambda box: _node(box, asked[box.name], seconds)
        )
        failed |= bad
        if head in failed:
            raise BoxUnreachable(failed[head])
        found_software = _software(own, software, nodes[head], tell, left.next("head"))
        found_links: dict[str, Link] = {}
        if others:
            found_links, unreached = links.measure(left.next("links"), tell, set(nodes))
            failed |= unreached
    now = datetime.now(UTC).isoformat(timespec="seconds")
    probe = Probe(date=now, head=head, nodes=nodes, links=found_links, software=found_software)
    return Probed(probe, failed, start_s, time.monotonic() - began_s)


def fingerprints(boxes: Sequence[ProbedBox]) -> tuple[dict[str, str], dict[str, str]]:
    """What each box is now, by name, and why some could not be asked: nothing is measured."""

    def ask(box: ProbedBox) -> str:
        command = box.python(["-m", "workers.probe", "--fingerprint"])
        with running(box.name, command, why_unreachable=box.why_unreachable) as child:
            return child.line()

    return _each(boxes, ask)


def measure_node(box: ProbedBox, forms: Sequence[str], tell: Tell, seconds: float = NODE_S) -> Node:
    """One box, by itself.

    Raises:
        BoxUnreachable: its probe did not run to its end.
    """
    with running(box.name, _node_command(box, forms), lambda said: tell(box.name, said)) as child:
        _ready(box, child)
        return _node(box, child, seconds)


def measure_nodes(boxes: Sequence[ProbedBox], forms: Sequence[str], tell: Tell, seconds: float) -> list[Node]:
    """Boxes side by side, all from the same moment on.

    Raises:
        BoxUnreachable: as `measure_node`, of any.
    """
    with ExitStack() as stack:
        asked, failed = _opened(stack, boxes, lambda box: _node_command(box, forms), tell)
        for box in boxes:
            if box.name in asked:
                _ready(box, asked[box.name])
        nodes, bad = _each(
            [box for box in boxes if box.name in asked], lambda box: _node(box, asked[box.name], seconds)
        )
    for why in (failed | bad).values():
        raise BoxUnreachable(why)
    return [nodes[box.name] for box in boxes]


def measure_software(box: ProbedBox, node: Node, tell: Tell, seconds: float = HEAD_S) -> HeadSoftware:
    """The head's software on its box.

    Raises:
        BoxUnreachable: as `measure_node`.
    """
    with running(box.name, box.python(_HEAD)) as child:
        _ready(box, child)
        return _software(box, child, node, tell, seconds)


def measure_links(
    head: ProbedBox, others: Sequence[ProbedBox], tell: Tell, seconds: float = LINKS_S
) -> tuple[dict[str, Link], dict[str, str]]:
    """From the head to each other box; and why some could not be measured.

    Raises:
        BoxUnreachable: the head's own end does not run.
    """
    with _links(head, others) as links:
        links.wait()
        return links.measure(seconds, tell, {box.name for box in others})


class _Links:
    """The head's end of its links, and an echo on each other box."""

    def __init__(
        self,
        head: ProbedBox,
        others: Sequence[ProbedBox],
        trips: Child,
        echoes: Mapping[str, Child],
        failed: dict[str, str],
    ) -> None:
        self._head = head
        self._others = others
        self._trips = trips
        self._echoes = echoes
        self._failed = failed
        self._infos: dict[str, Any] = {}

    def wait(self) -> None:
        """Until all listen, or have failed."""
        public_key = str(_field(self._head.name, self._trips.receive(), "public_key"))

        def listen(box: ProbedBox) -> Any:
            echo = self._echoes[box.name]
            endpoint = f"tcp://{box.address}:*"
            echo.send({"endpoints": [endpoint], "head_public": public_key, "encrypted": [True]})
            return echo.receive()

        self._infos, late = _each([box for box in self._others if box.name in self._echoes], listen)
        self._failed |= late

    def measure(self, seconds: float, tell: Tell, wanted: Set[str]) -> tuple[dict[str, Link], dict[str, str]]:
        """One after another, those `wanted`: they share the head's end."""
        listening = [box for box in self._others if box.name in self._infos and box.name in wanted]
        left = TimeLeft(seconds, {box.name: 1.0 for box in listening})

        def measure(box: ProbedBox) -> Link:
            tell(box.name, "its link")
            return _link(box, self._trips, self._infos[box.name], left.next(box.name))

        found, failed = _each(listening, measure, at_once=1)
        return found, {name: why for name, why in self._failed.items() if name in wanted} | failed


@contextmanager
def _links(head: ProbedBox, others: Sequence[ProbedBox]) -> Iterator[_Links]:
    with ExitStack() as stack:
        trips = stack.enter_context(running(head.name, head.python(_TRIPS)))
        echoes, failed = _opened(stack, others, lambda box: box.python(_ECHO))
        yield _Links(head, others, trips, echoes, failed)


def _opened(
    stack: ExitStack,
    boxes: Sequence[ProbedBox],
    command: Callable[[ProbedBox], Sequence[str]],
    tell: Tell | None = None,
) -> tuple[dict[str, Child], dict[str, str]]:
    """A process on each box, until `stack` ends; and why some did not start."""

    def start(box: ProbedBox) -> Child:
        def told(said: str) -> None:
            if tell is not None:
                tell(box.name, said)

        return stack.enter_context(running(box.name, command(box), told, box.why_unreachable))

    return _each(boxes, start, at_once=1)


def _node_command(box: ProbedBox, forms: Sequence[str]) -> list[str]:
    arguments = ["-m", "workers.probe", "--wait"]
    if forms:
        arguments += ["--forms", ",".join(forms)]
    if box.folder:
        arguments += ["--folder", box.folder]
    return box.python(arguments)


def _ready(box: ProbedBox, child: Child) -> None:
    if child.receive() != READY:
        raise BoxUnreachable(
            f"{box.name}: expected its probe to be ready, found something else: is Potluck the same there?"
        )


def _node(box: ProbedBox, child: Child, seconds: float) -> Node:
    child.send({"seconds": seconds})
    return _valid(box.name, lambda: Node.model_validate(child.receive()))


def _software(box: ProbedBox, child: Child, node: Node, tell: Tell, seconds: float) -> HeadSoftware:
    tell(box.name, "the head's software")
    child.send({"seconds": seconds, "threads": node.threads})
    return head_software(_valid(box.name, lambda: HeadTimes.model_validate(child.receive())), node)


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
    boxes: Sequence[ProbedBox], function: Callable[[ProbedBox], Found], *, at_once: int | None = None
) -> tuple[dict[str, Found], dict[str, str]]:
    """What `function` gives of each box, by name, and why it failed on others."""
    found, failed = each_box(boxes, function, at_once or len(boxes))
    return found, {name: str(error) for name, error in failed.items()}


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
