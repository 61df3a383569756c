"""A server's state as tables for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from rich.console import Group
from rich.text import Text

from orchestrator.cli.output import age, share, table, visible
from orchestrator.serving.state import BoxState, RequestState, ServerState
from placement.errors import InputError
from placement.units import size

_MOST_REQUESTS = 20
_MOST_EVENTS = 8
# What a server says to whoever sits at its own terminal.
_OF_ITS_TERMINAL = "Ctrl-C stops it"


def frames(ask: Callable[[], ServerState]) -> Iterator[Group]:
    """What to show, time after time.

    A server that does not answer later on is told above what it said last.

    Raises:
        InputError: it did not answer the first time.
    """
    last = ask()
    yield view(last, None)
    while True:
        before, trouble = last, ""
        try:
            last = ask()
        except InputError as error:
            trouble = str(error)
        yield view(last, before, trouble)


def view(state: ServerState, before: ServerState | None, trouble: str = "") -> Group:
    """Everything but the map of experts.

    Args:
        before: an earlier state, since when a step's parts are counted; None for since the start.
        trouble: why there is nothing newer.
    """
    asked = f"{state.running} running, {state.waiting} waiting"
    head = f"{state.model}: {state.tokens_per_s:.1f} tokens/s, {asked}, up {age(state.up_s)}"
    shown: list[Group | Text] = [Text(_one_line(head), style="bold")]
    shown += [Text(_one_line(words), style="bold red") for words in (trouble, state.lack) if words]
    shown += [Text(_one_line(line)) for line in _lines(state)]
    shown.append(Text(""))
    shown.append(_boxes(state.boxes))
    if state.requests:
        shown.append(_requests(state.requests))
    told = [event for event in state.events if not event.text.endswith(_OF_ITS_TERMINAL)]
    events = sorted(told, key=lambda event: event.age_s)[:_MOST_EVENTS]
    shown += [Text(_one_line(f"{age(event.age_s)} ago: {event.text}"), style="dim") for event in events]
    # Last, since a terminal cuts off what does not fit.
    if parts := _parts(state, before):
        shown.append(Text(""))
        shown.append(table("a step", ("part", "time", "share"), parts))
    return Group(*shown)


def _lines(state: ServerState) -> Iterator[str]:
    totals = state.totals
    yield (
        f"keys and values: {size(state.kv_used_bytes)} in use, {size(state.kept_bytes)} kept, "
        f"of {size(state.kv_budget_bytes)}"
    )
    cached = share(_of(totals.cached_tokens, totals.prompt_tokens))
    yield (
        f"since the start: {totals.prompt_tokens:,} tokens of prompts, {cached} from the cache; "
        f"{totals.generated_tokens:,} written; {_drafts(totals.drafted, totals.accepted)}"
    )


def _boxes(boxes: Sequence[BoxState]) -> Group:
    rows = [
        (
            box.name,
            box.standing,
            f"{box.experts:,}",
            size(box.num_bytes),
            size(box.budget_bytes),
            share(box.load),
            "" if box.round_trip_s is None else _time(box.round_trip_s),
        )
        for box in boxes
    ]
    return table("boxes", ("box", "state", "experts", "memory", "of", "load", "link"), rows)


def _parts(state: ServerState, before: ServerState | None) -> list[tuple[str, ...]]:
    """Of the mean step since `before`, or since the start where there were none; at the end its whole."""
    now = state.totals
    earlier = before.totals if before is not None and before.totals.steps < now.steps else None
    since_s = {} if earlier is None else earlier.step_parts_s
    steps = now.steps - (0 if earlier is None else earlier.steps)
    seconds = {name: part_s - since_s.get(name, 0.0) for name, part_s in now.step_parts_s.items()}
    whole_s = sum(seconds.values())
    if steps <= 0 or not seconds:
        return []
    rows = [*seconds.items(), ("all", whole_s)]
    return [(name, _time(part_s / steps), share(_of(part_s, whole_s))) for name, part_s in rows]


def _requests(requests: Sequence[RequestState]) -> Group:
    rows = [
        (
            f"{request.client} #{request.number}",
            request.place,
            f"{request.computed_tokens:,}/{request.prompt_tokens:,}",
            f"{request.generated_tokens:,}/{request.max_tokens:,}",
            _held(request.drafted, request.accepted),
            age(request.age_s),
        )
        for request in requests[:_MOST_REQUESTS]
    ]
    more = len(requests) - len(rows)
    title = f"requests, {more:,} more not shown" if more else "requests"
    return table(title, ("who", "state", "read", "written", "held", "since"), rows)


def _drafts(drafted: Sequence[int], accepted: Sequence[int]) -> str:
    return f"{_held(drafted, accepted)} of drafts held" if sum(drafted) else "nothing was drafted"


def _held(drafted: Sequence[int], accepted: Sequence[int]) -> str:
    return share(sum(accepted) / sum(drafted)) if sum(drafted) else "-"


def _of(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0


def _time(seconds: float) -> str:
    return f"{1e3 * seconds:.1f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _one_line(text: str) -> str:
    return visible(" ".join(text.splitlines()))
