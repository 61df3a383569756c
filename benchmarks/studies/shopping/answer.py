"""One line that says what to buy, by rule from predicted speeds: nothing is promised within their range."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.studies.shopping.speeds import Speed
from placement.answers.prediction_range import NO_DIFFERENCE


@dataclass(frozen=True, slots=True)
class Planned:
    """An option with its speeds, one of each context; None where it has no room."""

    name: str
    is_now: bool
    speeds: tuple[Speed | None, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Options by number at one context, the fastest of a group first; without what there is now.

    Attributes:
        take: the fastest, if it beats what there is now, and those that do so too and that it does not beat.
        faster: others that beat what there is now.
        same: others that differ from it by no more than the range.
        slower: others. If nothing has room now, these are all that the fastest beats.
        no_room: what does not hold the model, what there is now included.
    """

    take: tuple[int, ...]
    faster: tuple[int, ...]
    same: tuple[int, ...]
    slower: tuple[int, ...]
    no_room: tuple[int, ...]


def verdict_of(options: Sequence[Planned], context: int) -> Verdict:
    """
    Args:
        context: its number among the options' speeds.
    """
    known = {i: speed for i, option in enumerate(options) if (speed := option.speeds[context]) is not None}
    no_room = tuple(i for i in range(len(options)) if i not in known)
    order = sorted(known, key=lambda i: -known[i].tokens_per_s)
    now = next((known[i] for i in known if options[i].is_now), None)
    if now is None:
        take = tuple(i for i in order if not known[order[0]].beats(known[i]))
        return Verdict(take, (), (), tuple(order[len(take) :]), no_room)
    better = [i for i in order if known[i].beats(now)]
    take = tuple(i for i in better if not known[better[0]].beats(known[i]))
    slower = tuple(i for i in order if now.beats(known[i]))
    same = tuple(i for i in order if i not in better and i not in slower and not options[i].is_now)
    return Verdict(take, tuple(better[len(take) :]), same, slower, no_room)


def present(options: Sequence[Planned]) -> Planned | None:
    """What is there now; None where nothing is."""
    return next((option for option in options if option.is_now), None)


def answer(options: Sequence[Planned], contexts: Sequence[int]) -> str:
    """One line; contexts that sort options into other groups have sentences of their own.

    Args:
        contexts: whose speeds the options have.
    """
    verdicts = [verdict_of(options, index) for index in range(len(contexts))]
    if len({_groups(verdict) for verdict in verdicts}) == 1:
        return _sentences(options, verdicts[0], dict(enumerate(contexts)))
    return " ".join(
        f"At {context:,}: {_sentences(options, verdict, {index: context})}"
        for index, (context, verdict) in enumerate(zip(contexts, verdicts, strict=True))
    )


def _groups(verdict: Verdict) -> tuple[frozenset[int], ...]:
    groups = (verdict.take, verdict.faster, verdict.same, verdict.slower, verdict.no_room)
    return tuple(map(frozenset, groups))


def _sentences(options: Sequence[Planned], verdict: Verdict, shown: Mapping[int, int]) -> str:
    """
    Args:
        shown: contexts whose figures are given, by their number among the options' speeds.
    """

    def named(indices: Sequence[int], joint: str = ", ") -> str:
        return joint.join(f"{options[i].name} ({_figures(options, i, shown)})" for i in indices)

    if len(verdict.no_room) == len(options):
        return "None of these has room for the model."
    said = ["Keep what you have."]
    if verdict.take:
        take = _capital(named(verdict.take, " or "))
        said = [f"{take}." if len(verdict.take) == 1 else f"{take}: {NO_DIFFERENCE} between them."]
    if verdict.faster:
        said.append(f"Faster than now, but less so: {named(verdict.faster)}.")
    if verdict.same:
        said.append(f"From now, {NO_DIFFERENCE}: {named(verdict.same)}.")
    if verdict.slower:
        said.append(f"Slower: {named(verdict.slower)}.")
    if verdict.no_room:
        said.append(f"No room for the model: {', '.join(options[i].name for i in verdict.no_room)}.")
    return " ".join(said)


def _figures(options: Sequence[Planned], index: int, shown: Mapping[int, int]) -> str:
    """How many times as fast as now at each context, or tokens/s where nothing holds the model now."""
    now = present(options)
    texts: list[str] = []
    for number, context in shown.items():
        speed, before = options[index].speeds[number], None if now is None else now.speeds[number]
        assert speed is not None
        figure, unit = tokens(speed.tokens_per_s), "tokens/s"
        if before is not None:
            figure, unit = times(speed.tokens_per_s / before.tokens_per_s), "times as fast"
        texts.append(f"{figure} at {context:,}" if texts else f"{figure} {unit}")
    return ", ".join(texts)


def times(ratio: float) -> str:
    """Of two speeds."""
    return f"{ratio:.{1 if ratio >= 1.995 else 2}f}"


def tokens(per_s: float) -> str:
    """Tokens/s with the digits that a prediction can have."""
    return f"{per_s:.{0 if per_s >= 99.5 else 1 if per_s >= 9.95 else 2}f}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
