"""A long session of an agent: memory and time a turn stay flat.

    python -m benchmarks.serving.session [--turns 500] [--most-tokens 1400]

Chat completions with tools on the shipped model. Every other turn brings a tool's result, out of a script.
The context is bounded as agents do it: once a prompt has more than --most-tokens, the older half of the turns
is dropped, for a line that says so. After a fifth of the turns as a warm-up, the first fifth of the others is
compared with the last. Ends with exit code 1 where either grew by more than 15%.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.serving.client import read_head, request_bytes
from benchmarks.serving.server import Server, potluck

MODEL = Path(__file__).parents[2] / "models" / "potluck-tiny"
MOST_GROWTH = 1.15
_ANSWER = 24
_PLACES = ("attic", "cellar", "garage", "kitchen", "garden", "library", "workshop")
TOOLS = (
    {
        "type": "function",
        "function": {
            "name": "look",
            "description": "Say what is in a place.",
            "parameters": {"type": "object", "properties": {"place": {"type": "string"}}},
        },
    },
)
_SYSTEM = {"role": "system", "content": "You keep house. Look before you answer."}
_DROPPED = {"role": "user", "content": "(Older turns were dropped.)"}


@dataclass(frozen=True, slots=True)
class Turn:
    """`seconds`: from sending it to its end; tokens as the server counts them."""

    seconds: float
    rss_bytes: int
    prompt_tokens: int
    cached_tokens: int


def asked(number: int, answer: dict[str, Any] | None) -> list[dict[str, Any]]:
    """What a turn adds to the conversation: the answer to the one before, and what follows by the script.

    A small model seldom calls the tool itself. Where a result is due, the call stands in the script.
    """
    place = _PLACES[number % len(_PLACES)]
    if number % 2 == 0:
        added = [] if answer is None else [{"role": "assistant", "content": answer.get("content") or "Done."}]
        return [*added, {"role": "user", "content": f"What is in the {place}? That is question {number}."}]
    call = {
        "id": f"call_{number}",
        "type": "function",
        "function": {"name": "look", "arguments": json.dumps({"place": place})},
    }
    result = {
        "role": "tool",
        "tool_call_id": call["id"],
        "content": f"{place}: {number} boxes, {number % 9} cats",
    }
    return [{"role": "assistant", "content": "", "tool_calls": [call]}, result]


def compacted(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without the older half, cut before a user's message."""
    half = len(messages) // 2
    cut = next(place for place in range(half, len(messages)) if messages[place]["role"] == "user")
    return [_DROPPED, *messages[cut:]]


async def session(server: Server, turns: int, most_tokens: int) -> list[Turn]:
    """Run it.

    Raises:
        RuntimeError: a turn was not answered.
    """
    messages: list[dict[str, Any]] = []
    answer: dict[str, Any] | None = None
    found: list[Turn] = []
    for number in range(turns):
        messages += asked(number, answer)
        begun_s = time.monotonic()
        whole = await post(server.address, messages, number)
        answer, usage = whole["choices"][0]["message"], whole["usage"]
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        took_s = time.monotonic() - begun_s
        found.append(Turn(took_s, server.rss_bytes(), usage["prompt_tokens"], cached))
        if usage["prompt_tokens"] > most_tokens and number % 2:
            messages = compacted(messages)
    return found


async def post(address: tuple[str, int], messages: Sequence[dict[str, Any]], seed: int) -> dict[str, Any]:
    """An answer in one piece; raises RuntimeError for none."""
    body = {
        "model": "any",
        "messages": [_SYSTEM, *messages],
        "tools": list(TOOLS),
        "max_tokens": _ANSWER,
        "temperature": 0.7,
        "seed": seed,
    }
    reader, writer = await asyncio.open_connection(*address)
    try:
        writer.write(request_bytes(address, "/v1/chat/completions", body))
        status, _ = await read_head(reader)
        content = await reader.read()
    finally:
        writer.close()
    if status != 200:
        raise RuntimeError(f"turn {seed}: {status} {content[:300]!r}")
    return dict(json.loads(content))


@dataclass(frozen=True, slots=True)
class Fifth:
    """Of the turns behind the warm-up: the first fifth, or the last."""

    mean_s: float
    median_s: float
    rss_bytes: float
    prompt_tokens: float
    cached: float

    @classmethod
    def of(cls, turns: Sequence[Turn]) -> Fifth:
        prompts = sum(turn.prompt_tokens for turn in turns)
        return cls(
            fmean(turn.seconds for turn in turns),
            median(turn.seconds for turn in turns),
            fmean(turn.rss_bytes for turn in turns),
            prompts / len(turns),
            sum(turn.cached_tokens for turn in turns) / prompts,
        )


def fifths(turns: Sequence[Turn]) -> tuple[Fifth, Fifth]:
    """The first and the last of what follows the warm-up."""
    counted = turns[len(turns) // 5 :]
    size = max(1, len(counted) // 5)
    return Fifth.of(counted[:size]), Fifth.of(counted[-size:])


def main(
    turns: Annotated[int, typer.Option(min=25)] = 500,
    most_tokens: Annotated[int, typer.Option(min=200, help="Of a prompt, before turns are dropped.")] = 1400,
) -> None:
    """Run, and print what changed."""
    console = Console()
    with potluck(MODEL, ("--context", "2048")) as server:
        first, last = fifths(asyncio.run(session(server, turns, most_tokens)))
    for name, fifth in (("first", first), ("last", last)):
        console.print(
            f"{name} fifth: {fifth.mean_s * 1e3:.0f} ms a turn (median {fifth.median_s * 1e3:.0f}), "
            f"{fifth.rss_bytes / 1e6:.1f} MB, prompts of {fifth.prompt_tokens:.0f} tokens, "
            f"{fifth.cached:.0%} of them kept"
        )
    ratios = last.median_s / first.median_s, last.rss_bytes / first.rss_bytes
    console.print(f"{turns} turns: time by median {ratios[0]:.2f}, memory {ratios[1]:.3f} of the first")
    if max(ratios) > MOST_GROWTH:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
