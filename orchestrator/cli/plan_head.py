"""`potluck plan --head`: what each place for the head is worth, and what a moved head asks of the user."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group

from orchestrator.cli.output import table
from placement.answers.head_choice import LEAST_GAIN, HeadChoice, TriedHead
from placement.answers.prediction_range import NO_DIFFERENCE
from placement.given.cluster_spec import ClusterSpec
from placement.given.other_head import head_place
from placement.units import compared, gain_of

AUTO = "auto"
Head = Annotated[
    str | None,
    typer.Option(
        help="Where the head computes, NODE or NODE/DEVICE; auto tries each box and device and takes the "
        "fastest. Default as the cluster file says.",
        metavar="PLACE",
    ),
]


def heads_document(choice: HeadChoice | None) -> list[dict[str, Any]]:
    """The heads that were tried, for `--json`."""
    if choice is None:
        return []
    return [
        {
            "node": tried.place.node,
            "device": tried.place.device,
            "alike": tried.num_alike,
            "tokens_per_s": tried.tokens_per_s,
            "prefill_tokens_per_s": tried.prefill_tokens_per_s,
            "gain": choice.gain(tried),
            "promised": choice.is_promised(tried),
            "planned": tried.is_planned,
            "named": tried is choice.named,
            "chosen": tried is choice.best,
            "note": tried.note,
        }
        for tried in choice.tried
    ]


def heads_parts(choice: HeadChoice | None) -> list[Group | str]:
    """The same for people, and what the choice is worth in one sentence."""
    if choice is None:
        return []
    counted = ", prompts counted" if choice.problem.workload.prefill_passes_per_step else ""
    rows = [
        (
            _name(tried, choice),
            _least(tried, tried.tokens_per_s),
            _least(tried, tried.prefill_tokens_per_s),
            _beside(tried, choice),
        )
        for tried in choice.tried
    ]
    columns = ("head on", "tokens/s", "prompts", "beside the file's")
    parts: list[Group | str] = [table(f"Places for the head{counted}", columns, rows)]
    if any(tried.problem is not None and not tried.is_planned for tried in choice.tried):
        parts.append(
            '"From": the best of some simple plans, so far behind that no better one was looked for.'
        )
    parts += [
        f"No room with the head on {tried.place}: {tried.note}." for tried in choice.tried if tried.note
    ]
    return [*parts, _worth(choice, counted)]


def elsewhere_note(boxes: ClusterSpec, of_file: ClusterSpec, cluster: Path) -> str | None:
    """What to do before a plan is run whose head is not where the cluster file has it."""
    place, named = head_place(boxes), head_place(of_file)
    if place is None or place == named:
        return None
    if place.node == of_file.head:
        return (
            f"the head of this plan computes on {place}, {cluster} names {named}: a run with this plan does "
            "as the plan says"
        )
    return (
        f"the head of this plan is on {place}, {cluster} has it on {of_file.head}: before `potluck up "
        f"--plan`, set `head: {place.node}` there, type or probe the links from {place.node}, and go on there"
    )


def _name(tried: TriedHead, choice: HeadChoice) -> str:
    more = "" if tried.num_alike == 1 else f" and {tried.num_alike - 1} like it"
    chosen = " (chosen)" if tried is choice.best else ""
    return f"{tried.place}{more}{chosen}"


def _least(tried: TriedHead, tokens_per_s: float | None) -> str:
    if tokens_per_s is None:
        return "no room"
    return f"{'' if tried.is_planned else 'from '}{tokens_per_s:.2f}"


def _beside(tried: TriedHead, choice: HeadChoice) -> str:
    if tried is choice.named:
        return "the file's"
    gain = choice.gain(tried)
    return "" if gain is None else gain_of(gain)


def _worth(choice: HeadChoice, counted: str) -> str:
    best = choice.best.place
    if choice.best is choice.named:
        return (
            f"The head stays on {best}: no other place that was planned for in full gains more than "
            f"{LEAST_GAIN:.0%}."
        )
    gain = choice.gain(choice.best)
    if gain is None:
        return f"The head is put on {best}."
    assert choice.named is not None
    unsure = "" if choice.is_promised(choice.best) else f"; {NO_DIFFERENCE}"
    moved = f"The head on {best} instead of {choice.named.place}"
    return f"{moved}: whole steps {compared(1 + gain)}{counted}{unsure}."
