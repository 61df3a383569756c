"""What clients do to a server by mistake or ill will, under load: it goes on answering, and forgets them.

    python -m benchmarks.serving.abuse [--requests 5000] [--connections 1000]

On the shipped model: idle connections, clients that read nothing, that leave while they wait, while their
prompt is read and while their answer is written, broken bodies, many prompts near the context at once, and
thousands of short requests. After each of them one request must get the text that it got at first. Ends with
exit code 1 where it does not, or where memory grows with the number of short requests.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.serving.asks import Ask, Asks, Lengths
from benchmarks.serving.client import body_of, complete, read_head, request_bytes
from benchmarks.serving.server import Server, potluck

MODEL = Path(__file__).parents[2] / "models" / "potluck-tiny"
CONTEXT = 2048
MOST_GROWTH_BYTES = 20_000_000
_BROKEN = (
    b"",
    b"{",
    b"[1, 2]",
    b'{"model": 1}',
    b'{"model": "m", "prompt": [-1]}',
    b'{"model": "m", "prompt": [99999999]}',
    b'{"model": "m", "prompt": "a", "max_tokens": 1e999}',
    b'{"model": "m", "prompt": "a", "temperature": "hot"}',
    b"\xff\xfe",
    b"[" * 5000,
    b'{"model": "m", "prompt": "\\ud800"}',
)
_SHORT = Lengths(8, 4, 16)
_DIFFERENT = 250
PROBE = Ask(tuple(range(100, 132)), 24, 7, 0.7)


async def idle(server: Server, connections: int) -> str:
    """So many connections that send nothing, while others are answered."""
    opened = [await asyncio.open_connection(*server.address) for _ in range(connections)]
    answers = await asyncio.gather(*(complete(server.address, replace(PROBE, seed=n)) for n in range(8)))
    for _, writer in opened:
        writer.close()
    return str(Counter(answer.outcome for answer in answers))


async def slow_readers(server: Server, count: int = 8) -> str:
    """Clients that ask for long answers and read nothing of them, while another one asks."""
    opened = []
    for number in range(count):
        reader, writer = await asyncio.open_connection(*server.address, limit=1)
        ask = replace(PROBE, max_tokens=400, seed=number)
        writer.write(request_bytes(server.address, "/v1/completions", body_of(ask)))
        opened.append((reader, writer))
    answer = await complete(server.address, PROBE)
    for _, writer in opened:
        writer.close()
    return answer.outcome


async def leavers(server: Server, count: int = 60) -> str:
    """Clients that close their connection after a while: queued, in the prompt or in the answer."""
    chosen = random.Random(0)

    async def leave(number: int) -> str:
        _, writer = await asyncio.open_connection(*server.address)
        length = chosen.choice((8, 400, 1500))
        ask = Ask(tuple(chosen.randrange(100, 2000) for _ in range(length)), 200, number)
        writer.write(request_bytes(server.address, "/v1/completions", body_of(ask)))
        await asyncio.sleep(chosen.random() * 3)
        writer.transport.abort()
        return "left"

    found = Counter(await asyncio.gather(*(leave(number) for number in range(count))))
    return str(dict(found))


async def broken(server: Server, count: int = 500) -> str:
    """Bodies that are none, while users ask."""

    async def one(number: int) -> str:
        reader, writer = await asyncio.open_connection(*server.address)
        content = _BROKEN[number % len(_BROKEN)]
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: {server.address[0]}:{server.address[1]}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\nConnection: close\r\n\r\n"
        )
        writer.write(head.encode() + content)
        try:
            return str((await read_head(reader))[0])
        finally:
            writer.close()

    async def some() -> list[str]:
        return [await one(number) for number in range(count)]

    users = (complete(server.address, replace(PROBE, max_tokens=64, seed=number)) for number in range(4))
    statuses, answers = await asyncio.gather(some(), asyncio.gather(*users))
    return f"{dict(Counter(statuses))}; users: {dict(Counter(each.outcome for each in answers))}"


async def near_context(server: Server, users: int = 64) -> str:
    """Prompts that leave room for a few tokens, all at once; who is refused comes again."""
    asks = Asks(3, Lengths(CONTEXT - 24, CONTEXT - 24, CONTEXT - 24), Lengths(16, 16, 16))

    async def user(number: int) -> Counter[str]:
        found: Counter[str] = Counter()
        while True:
            answer = await complete(server.address, asks.ask(number))
            found[answer.outcome] += 1
            if answer.outcome != "refused":
                return found
            await asyncio.sleep(min(answer.retry_after_s, 3.0))

    counts: Counter[str] = Counter()
    for found in await asyncio.gather(*(user(number) for number in range(users))):
        counts += found
    return str(dict(counts))


async def short(server: Server, count: int, users: int = 8) -> tuple[Counter[str], list[int]]:
    """Short requests, the same ones again and again; memory at each tenth of them.

    What is kept of texts grows by design until memory for keys and values is full, and would hide the rest.
    """
    asks = Asks(4, _SHORT, Lengths(4, 2, 8))
    left = iter(range(count))
    outcomes: Counter[str] = Counter()
    memory: list[int] = []

    async def user() -> None:
        for number in left:
            outcomes[(await complete(server.address, asks.ask(number % _DIFFERENT))).outcome] += 1
            if number % (count // 10) == 0:
                memory.append(server.rss_bytes())

    await asyncio.gather(*(user() for _ in range(users)))
    return outcomes, memory


async def settled(server: Server, text: str) -> bool:
    """Whether one request gets the text that it got at first."""
    answer = await complete(server.address, PROBE)
    return answer.outcome == "answered" and answer.text == text


def main(
    requests: Annotated[int, typer.Option(min=100, help="Short ones.")] = 5000,
    connections: Annotated[int, typer.Option(min=1, help="Idle ones.")] = 1000,
) -> None:
    """Run, and print what happened."""
    console = Console()
    with potluck(MODEL, ("--context", str(CONTEXT))) as server:
        is_right = asyncio.run(abused(server, requests, connections, console.print))
    if not is_right:
        raise typer.Exit(1)


async def abused(server: Server, requests: int, connections: int, say: Callable[[str], None]) -> bool:
    """Do all of it; whether the server came through."""
    text = (await complete(server.address, PROBE)).text
    is_right = True
    kinds: tuple[tuple[str, Callable[[], Awaitable[str]]], ...] = (
        (f"{connections} idle connections", lambda: idle(server, connections)),
        ("8 clients that read nothing", lambda: slow_readers(server)),
        ("60 that leave", lambda: leavers(server)),
        ("500 broken bodies", lambda: broken(server)),
        ("64 prompts near the context", lambda: near_context(server)),
    )
    for name, do in kinds:
        found = await do()
        ok = await settled(server, text)
        is_right &= ok
        say(f"{name}: {found}; then as before: {ok}; {server.rss_bytes() / 1e6:.0f} MB")
    outcomes, memory = await short(server, requests)
    grown = memory[-1] - memory[len(memory) // 5]
    say(f"{requests} short requests: {dict(outcomes)}; MB: {[round(each / 1e6) for each in memory]}")
    ok = await settled(server, text)
    say(f"then as before: {ok}; memory grew by {grown / 1e6:.1f} MB after the first fifth")
    return is_right and ok and grown < MOST_GROWTH_BYTES and set(outcomes) == {"answered"}


if __name__ == "__main__":
    typer.run(main)
