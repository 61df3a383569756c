"""How fast a server is with no drafts, with a fixed number of them, and where it chooses the number itself.

    python -m benchmarks.draft_depth [--model DIR] [--answers 24] [--tokens 96] [--sequences 4] [--threads 1]

Each way has a server's runner and scheduler of its own, on one model. All get the same requests in the same
order, and a free place is filled at once. They take turns of 16 tokens of each sequence, in another order
each time, so that what else the machine does falls on all alike, and on the same tokens. Caches mostly hold
what a server left there itself, as they do where it is alone. With one thread, processor time counts, also
for what schedulers learn. The answers must be the same, else it ends with an error.
A server lives through all texts, so it comes to a text with what it learned of the one before. On each, the
first answers of all places only warm up, and it counts up to the moment when no request is left to begin.
Of 'off' and 'adaptive' there are two servers each, and what both did counts. A server is faster or slower by
up to 2% for where its objects lie in memory: 'off, second by first' says it of two that are equal.
`--random 0.7` takes a model of as many layers as Step-3.5-Flash, an eighth as wide, with random weights. Its
MTP layers are as small a part of a pass as they really are. 0.7 of the drafts hold: tokens are drawn so hot
that noise, which drafts and tokens share, mostly decides alone (`temperature_of`).
Ratios are of all that counts; behind them stands the standard error, from the ratios of its eighths.
The fastest of four fixed numbers is also the luckiest one. So adaptive stands beside two: the fastest of all,
and, 'held out', for each half of the eighths, the one that was fastest in the other half.
"""

from __future__ import annotations

import gc
import tempfile
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Annotated

import numpy as np
import torch
import typer

from benchmarks.random_gguf import FileShape, FileTypes, write_random_gguf
from orchestrator.model.mtp import MtpDrafter
from orchestrator.model.step35 import Step35Model
from orchestrator.sampling_params import SamplingParams
from orchestrator.scheduler import Scheduler
from orchestrator.scheduling.candidate import Candidate
from orchestrator.scheduling.kv_budget import KvBudget
from orchestrator.scheduling.limits import Limits
from orchestrator.scheduling.native import DraftDepth, MeasuredCosts
from orchestrator.serving.answer import AnswerEvent, Finished, Refused
from orchestrator.serving.counts import Counts
from orchestrator.serving.prompts import Prompts
from orchestrator.serving.request import GenerationRequest
from orchestrator.serving.runner import Asked, Runner
from orchestrator.session import load_local
from orchestrator.tokenizer import Tokenizer
from placement.pass_costs import costs_of_reading
from workers.formats.open_model import open_model

WAYS = ("off", "1", "2", "3", "adaptive")
TWICE = ("off", "adaptive")
"""What is compared. Of the others there is one server each."""
MOST_DRAFTS = 3
CONTEXT_TOKENS = 48
TURN_TOKENS = 16
_ENDS = ("length", "stop", "tool_calls", "loop")
NARROW = FileShape(
    hidden=512,
    vocab=2048,
    moe_layers=44,
    mtp_layers=MOST_DRAFTS,
    heads=8,
    sliding_heads=12,
    kv_heads=2,
    head_dim=64,
    dense_width=1280,
    experts=36,
    top_k=4,
    expert_width=256,
    shared_width=256,
    max_positions=4096,
)
"""The vocabulary is potluck-tiny's, whose tokenizer reads the prompts."""


class FixedDepth(DraftDepth):
    """As many drafts as there may be, always."""

    @property
    def keeps_rows(self) -> bool:
        """See `DraftDepth.keeps_rows`."""
        return True

    def rests(self, num_sequences: int, other_rows: int, /) -> bool:
        """See `DraftDepth.rests`."""
        return not self.most

    def choose(
        self, candidates: Sequence[Candidate], other_rows: int = 0, most_rows: int = 1 << 30
    ) -> dict[int, int]:
        """See `DraftDepth.choose`."""
        return {of.sequence: max(0, min(self.most, of.most)) for of in candidates}


class FixedScheduler(Scheduler):
    """One that does not choose."""

    def __init__(self, limits: Limits, kv: KvBudget, costs: MeasuredCosts, most_drafts: int) -> None:
        super().__init__(limits, kv, costs, most_drafts)
        self._depth = FixedDepth(most_drafts, costs)


class Steps(ABC):
    """Steps that count: seconds and tokens of each."""

    __slots__ = ()

    @abstractmethod
    def parts(self, parts: int) -> list[np.ndarray]:
        """So many parts, one after another, float64 [steps, seconds and tokens] each."""

    def speeds(self, parts: int = 1) -> np.ndarray:
        """Tokens a second of so many parts, float64 [parts]."""
        return np.array([_speed(part) for part in self.parts(parts)])

    def speed_of_half(self, half: int) -> float:
        """Tokens a second of every second eighth, from the first or the second one on."""
        return _speed(np.concatenate(self.parts(8)[half::2]))


@dataclass(frozen=True, slots=True)
class Together(Steps):
    """Servers that are all alike."""

    servers: tuple[Server, ...]

    def parts(self, parts: int) -> list[np.ndarray]:
        """See `Steps.parts`; each server gives as large a share of a part."""
        found = [server.parts(parts) for server in self.servers]
        return [np.concatenate(of_all) for of_all in zip(*found, strict=True)]


@dataclass(slots=True)
class Server(Steps):
    """One way to draft: what its steps took and gave, and what it said.

    Attributes:
        waiting: requests that have not begun.
        steps: seconds and tokens of each step that counts.
        tokens: of each request, prompt first.
    """

    runner: Runner
    clock: Callable[[], float]
    waiting: deque[tuple[int, GenerationRequest]] = field(default_factory=deque)
    steps: list[tuple[float, int]] = field(default_factory=list)
    tokens: dict[int, list[int]] = field(default_factory=dict)
    _places: int = 0
    _said_before: int = 0
    _to_warm_up: int = 0

    @classmethod
    def of(
        cls,
        way: str,
        head: Step35Model,
        tokenizer: Tokenizer,
        clock: Callable[[], float],
        drafter: Callable[[Step35Model, int], MtpDrafter] = MtpDrafter,
    ) -> Server:
        """`way`: one of `WAYS`."""
        drafts = int(way) if way.isdigit() else MOST_DRAFTS * (way != "off")
        # Weights in common, and a pool of its own for keys and values.
        model = Step35Model(head.config, head.weights, head.dtype, head.experts, head.timer)
        limits = Limits(2048)
        costs = MeasuredCosts(costs_of_reading(model.config.shape(""), 16.0))
        kv = KvBudget(tuple(model.kv_sizes(drafts)), limits.pass_rows)
        of_way = Scheduler if way == "adaptive" else FixedScheduler
        scheduler = of_way(limits, kv, costs, drafts)
        prompts = Prompts(tokenizer, model.config.vocab_size, model.config.eos_token_ids)
        runner = Runner(
            model,
            drafter(model, drafts) if drafts else None,
            tokenizer,
            prompts.budget_tokens,
            scheduler,
            clock,
            lambda: True,
        )
        return cls(runner, clock)

    def begin(self, requests: Sequence[tuple[int, GenerationRequest]], places: int) -> None:
        """Take a text's requests, so many at a time."""
        self.waiting = deque(requests)
        self.steps.clear()
        self.tokens.clear()
        self._places = places
        self._said_before = self._said
        self._to_warm_up = len(requests) - 2 * places

    def turn_to(self, tokens: int, prompts: Prompts) -> bool:
        """Run steps until so many tokens were said, if anything is left to do."""
        while is_left := self.turn(prompts):
            if self._said - self._said_before >= tokens:
                break
        return is_left

    def turn(self, prompts: Prompts) -> bool:
        """Fill places and run a step, if anything is left to do."""
        while self.waiting and len(self.runner.live) < self._places:
            number, request = self.waiting.popleft()
            self.runner.submit([Asked(number, request, prompts.of(request, ""), _check)])
            self.tokens[number] = self.runner.live[number].sequence.tokens
        if not self.runner.live:
            return False
        counts = bool(self.waiting) and len(self.waiting) <= self._to_warm_up
        said = self._said
        started = self.clock()
        self.runner.turn()
        if counts:
            self.steps.append((self.clock() - started, self._said - said))
        return True

    @property
    def _said(self) -> int:
        return self.runner.counts.totals({}).generated_tokens

    def parts(self, parts: int) -> list[np.ndarray]:
        """See `Steps.parts`."""
        return np.array_split(np.array(self.steps), parts)


def _speed(steps: np.ndarray) -> float:
    """Tokens a second of steps [steps, seconds and tokens]."""
    spent_s, tokens = steps.sum(axis=0)
    return float(tokens / spent_s)


def _check(event: AnswerEvent | Refused) -> None:
    """Raise RuntimeError for an answer that did not come to its end."""
    if isinstance(event, Refused) or (isinstance(event, Finished) and event.reason not in _ENDS):
        raise RuntimeError(f"a request was not answered: {event}")


def play(
    servers: Sequence[Server],
    requests: Sequence[tuple[int, GenerationRequest]],
    places: int,
    prompts: Prompts,
) -> None:
    """All requests on all servers, some tokens of each in turn, in another order each time.

    Garbage of one would fall on whoever comes next, so it is collected before.

    Raises:
        RuntimeError: drafts changed a text.
    """
    order = Random(1)
    for server in servers:
        server.begin(requests, places)
    gc.collect()
    gc.disable()
    try:
        tokens, is_left = 0, True
        while is_left:
            tokens += TURN_TOKENS * places
            turns = [server.turn_to(tokens, prompts) for server in order.sample(servers, len(servers))]
            is_left = any(turns)
    finally:
        gc.enable()
    if any(server.tokens != servers[0].tokens for server in servers):
        raise RuntimeError("drafts changed a text")


def temperature_of(acceptance: float, vocab: int) -> float:
    """At which so many drafts hold whose logits have nothing to do with the trunk's, both of variance 1.

    Token and draft are the largest of logit by temperature plus the same noise. The hotter, the less logits
    matter. Found by drawing, within about 0.02.
    """
    chance = np.random.default_rng(1)
    noise, trunk, draft = chance.gumbel(size=(500, vocab)), *chance.standard_normal((2, 500, vocab))
    low, high = 0.01, 100.0
    for _ in range(20):
        middle = (low * high) ** 0.5
        held = (noise + trunk / middle).argmax(axis=1) == (noise + draft / middle).argmax(axis=1)
        low, high = (middle, high) if held.mean() < acceptance else (low, middle)
    return high


def requests_of(
    tokenizer: Tokenizer, text: str, number: int, tokens: int, temperature: float = 0.7
) -> list[tuple[int, GenerationRequest]]:
    """So many pieces of a text to continue; see `pieces_of`."""
    return [
        (
            place,
            GenerationRequest(
                "benchmark",
                piece,
                SamplingParams(temperature=temperature, seed=place),
                max_tokens=limit,
                ignore_eos=True,
            ),
        )
        for place, (piece, limit) in enumerate(pieces_of(tokenizer.encode_prompt(text), number, tokens))
    ]


def pieces_of(text: Sequence[int], number: int, tokens: int) -> list[tuple[tuple[int, ...], int]]:
    """So many pieces of a text, each another one, not in their order, and how long their answers may be.

    Answers end after half to one and a half times `tokens`. Were all as long, those without drafts would
    end together, and their prompts would be read together, for less.
    """
    starts = np.linspace(0, len(text) - CONTEXT_TOKENS, number).astype(int).tolist()
    luck = Random(2)
    luck.shuffle(starts)
    pieces = [tuple(text[start : start + CONTEXT_TOKENS]) for start in starts]
    return [(piece, luck.randint(tokens // 2, tokens * 3 // 2)) for piece in pieces]


def held_out_by_the_best(found: Steps, fixed: Sequence[Steps]) -> float:
    """Speed by that of the fastest of `fixed`, which is chosen on the other half of the eighths."""
    ratios = []
    for half in (0, 1):
        best = max(fixed, key=lambda of: of.speed_of_half(1 - half))
        ratios.append(found.speed_of_half(half) / best.speed_of_half(half))
    return float(np.sqrt(np.prod(ratios)))


def cells(servers: dict[str, tuple[Server, ...]]) -> list[str]:
    """Speeds, adaptive's by the best fixed one's, its drafts a step, and how many of three hold by place."""
    ways = {way: Together(of_way) for way, of_way in servers.items()}
    off, adaptive = ways["off"], ways["adaptive"]
    fixed = [ways[way] for way in WAYS if way != "adaptive"]
    best = max(fixed, key=lambda way: float(way.speeds()[0]))
    found = [str(len(servers["off"][0].steps)), f"{off.speeds()[0]:.0f}", _ratio(*servers["off"][::-1])]
    found += [_ratio(ways[way], off) for way in WAYS[1:]]
    drafted = [server.runner.counts.totals({}) for server in servers["adaptive"]]
    per_step = sum(sum(of.drafted) for of in drafted) / max(1, sum(of.steps for of in drafted))
    three = servers["3"][0].runner.counts.totals({})
    held = [f"{held / max(1, made):.2f}" for held, made in zip(three.accepted, three.drafted, strict=True)]
    by_best = [_ratio(adaptive, best), f"{held_out_by_the_best(adaptive, fixed):.3f}"]
    return [*found, *by_best, f"{per_step:.2f}", ", ".join(held)]


def _ratio(first: Steps, second: Steps) -> str:
    parts = first.speeds(8) / second.speeds(8)
    return f"{first.speeds()[0] / second.speeds()[0]:.3f} ± {parts.std(ddof=1) / len(parts) ** 0.5:.3f}"


def main(
    model: Annotated[Path, typer.Option(help="Directory with heldout/*.txt.")] = Path("models/potluck-tiny"),
    answers: Annotated[int, typer.Option(min=4, help="Of each place and text.")] = 24,
    tokens: Annotated[int, typer.Option(min=8, help="Of an answer, on average.")] = 96,
    sequences: Annotated[list[int], typer.Option(min=1, max=8, help="At a time.")] = [1, 4, 8],  # noqa: B006
    random: Annotated[
        list[float], typer.Option(help="Take a random model of many layers; so many drafts hold.")
    ] = [],  # noqa: B006
    threads: Annotated[int, typer.Option(min=1)] = 1,
) -> None:
    """Print a row for each text and number of sequences."""
    torch.set_num_threads(threads)
    clock = time.thread_time if threads == 1 else time.perf_counter
    with tempfile.TemporaryDirectory() as folder:
        texts = sorted((model / "heldout").glob("*.txt"))
        cases = [(text.stem, text, 0.7) for text in texts]
        if random:
            cases = [(f"random {share}", texts[0], temperature_of(share, NARROW.vocab)) for share in random]
            path = write_random_gguf(Path(folder) / "random.gguf", NARROW, FileTypes.all_in("q8_0"))
            head = load_local(open_model(path), torch.bfloat16)
        else:
            head = load_local(open_model(model), torch.bfloat16)
        tokenizer = Tokenizer.load(model)
        prompts = Prompts(tokenizer, head.config.vocab_size, head.config.eos_token_ids)
        columns = [f"{way}, by off" for way in WAYS[1:]]
        last = ("adaptive, by the best", "held out", "drafts a step", "held")
        _line("text", "sequences", "steps", "off, tokens/s", "off, second by first", *columns, *last)
        _line(*["---"] * (len(columns) + 9))
        for places in sequences:
            servers = {
                way: tuple(Server.of(way, head, tokenizer, clock) for _ in range(1 + (way in TWICE)))
                for way in WAYS
            }
            all_of_them = [server for of_way in servers.values() for server in of_way]
            for name, source, temperature in cases:
                for server in all_of_them:
                    server.runner.counts = Counts()
                text = source.read_text(encoding="utf-8")
                asked = requests_of(tokenizer, text, answers * places, tokens, temperature)
                play(all_of_them, asked, places, prompts)
                _line(name, str(places), *cells(servers))


def _line(*found: str) -> None:
    typer.echo(f"| {' | '.join(found)} |")


if __name__ == "__main__":
    typer.run(main)
