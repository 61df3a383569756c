"""How fast a server is with no drafts, with a fixed number of them, and where it chooses the number itself.

    python -m benchmarks.draft_depth [--model DIR] [--rounds 8] [--tokens 96] [--sequences 4] [--threads 1]

Each way has a server's runner and scheduler of its own, on one model. In a round all get the same requests,
and they take turns step by step, so that what else the machine does falls on all alike. With one thread,
processor time counts, also for what schedulers learn. The texts must be the same, else it ends with an error.
'loaded' has MTP layers that nobody asks for drafts: rows wait for them, so that drafts could begin.
`--random 0.7` takes a model of as many layers as Step-3.5-Flash, an eighth as wide, with random weights. Its
MTP layers are as small a part of a pass as they really are. 0.7 of the drafts hold: tokens are drawn so hot
that noise, which drafts and tokens share, mostly decides alone (`temperature_of`).
Ratios are of whole runs, prompts included; behind them stand the quartiles of the rounds' own.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from statistics import quantiles
from typing import Annotated

import numpy as np
import torch
import typer

from benchmarks.random_gguf import FileShape, FileTypes, write_random_gguf
from orchestrator.draft_depth import Candidate, DraftDepth
from orchestrator.model.mtp import MtpDrafter
from orchestrator.model.step35 import Step35Model
from orchestrator.sampling_params import SamplingParams
from orchestrator.scheduler import Scheduler
from orchestrator.scheduling.kv_budget import KvBudget
from orchestrator.scheduling.limits import Limits
from orchestrator.scheduling.measured_costs import MeasuredCosts
from orchestrator.serving.answer import AnswerEvent, Finished, Refused
from orchestrator.serving.prompts import Prompts
from orchestrator.serving.request import GenerationRequest
from orchestrator.serving.runner import Runner
from orchestrator.session import load_local
from orchestrator.tokenizer import Tokenizer
from placement.pass_costs import costs_of_reading
from workers.formats.open_model import open_model

WAYS = ("off", "loaded", "1", "2", "3", "adaptive")
MOST_DRAFTS = 3
CONTEXT_TOKENS = 48
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

    def choose(
        self, candidates: Sequence[Candidate], other_rows: int = 0, most_rows: int = 1 << 30
    ) -> dict[int, int]:
        """See `DraftDepth.choose`."""
        return {candidate.sequence: max(0, min(self.most, candidate.most)) for candidate in candidates}


class FixedScheduler(Scheduler):
    """One that does not choose."""

    def __init__(self, limits: Limits, kv: KvBudget, costs: MeasuredCosts, most_drafts: int) -> None:
        super().__init__(limits, kv, costs, most_drafts)
        self._depth = FixedDepth(most_drafts, costs)


@dataclass(slots=True)
class Server:
    """One way to draft: what it took in each round, and what it said in this one."""

    runner: Runner
    clock: Callable[[], float]
    spent_s: list[float] = field(default_factory=list)
    tokens: dict[int, list[int]] = field(default_factory=dict)

    @classmethod
    def of(cls, way: str, head: Step35Model, tokenizer: Tokenizer, clock: Callable[[], float]) -> Server:
        drafts = int(way) if way.isdigit() else MOST_DRAFTS * (way != "off")
        # Weights in common, and a pool of its own for keys and values.
        model = Step35Model(head.config, head.weights, head.dtype, head.experts, head.timer)
        limits = Limits(2048)
        costs = MeasuredCosts(costs_of_reading(model.config.shape(""), 16.0))
        kv = KvBudget(tuple(model.kv_sizes(drafts)), limits.pass_rows)
        if way == "adaptive":
            scheduler = Scheduler(limits, kv, costs, drafts)
        else:
            scheduler = FixedScheduler(limits, kv, costs, 0 if way == "loaded" else drafts)
        prompts = Prompts(tokenizer, model.config.vocab_size, model.config.eos_token_ids)
        runner = Runner(
            model,
            MtpDrafter(model, drafts) if drafts else None,
            tokenizer,
            prompts.budget_tokens,
            scheduler,
            clock,
            lambda: True,
        )
        return cls(runner, clock)

    def begin(self, requests: Sequence[tuple[int, GenerationRequest]], prompts: Prompts) -> None:
        """Take a round's requests."""
        self.spent_s.append(0.0)
        self.tokens.clear()
        for number, request in requests:
            self.runner.submit(number, request, prompts.of(request, ""), _check)

    def turn(self) -> bool:
        """Run a step, if anything is left to do."""
        if not self.runner.live:
            return False
        for number, live in self.runner.live.items():
            self.tokens[number] = live.sequence.tokens
        started = self.clock()
        self.runner.turn()
        self.spent_s[-1] += self.clock() - started
        return True


def _check(event: AnswerEvent | Refused) -> None:
    """Raise RuntimeError for an answer that did not come to its length."""
    if isinstance(event, Refused) or (isinstance(event, Finished) and event.reason != "length"):
        raise RuntimeError(f"a request was not answered: {event}")


def play(
    servers: Sequence[Server], rounds: Sequence[Sequence[tuple[int, GenerationRequest]]], prompts: Prompts
) -> None:
    """Each round on all servers, step by step in turn, in another order each time.

    What one leaves in caches falls on whoever comes next.

    Raises:
        RuntimeError: drafts changed a text.
    """
    order = Random(1)
    for requests in rounds:
        for server in servers:
            server.begin(requests, prompts)
        while sum(server.turn() for server in order.sample(servers, len(servers))):
            pass
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
    tokenizer: Tokenizer, text: str, rounds: int, sequences: int, tokens: int, temperature: float = 0.7
) -> list[list[tuple[int, GenerationRequest]]]:
    """Pieces of a text to continue, each another one."""
    token_ids = tokenizer.encode_prompt(text)
    starts = np.linspace(0, len(token_ids) - CONTEXT_TOKENS, rounds * sequences).astype(int)
    requests = [
        (
            number,
            GenerationRequest(
                "benchmark",
                tuple(token_ids[start : start + CONTEXT_TOKENS]),
                SamplingParams(temperature=temperature, seed=number),
                max_tokens=tokens,
                ignore_eos=True,
            ),
        )
        for number, start in enumerate(starts)
    ]
    return [requests[n * sequences : (n + 1) * sequences] for n in range(rounds)]


def cells(servers: dict[str, Server], tokens: int) -> list[str]:
    """Speeds, adaptive's by the best fixed one's, its drafts a step, and how many of three hold by place."""
    of_way = {way: np.array(server.spent_s[1:]) for way, server in servers.items()}
    fixed = [of_way[way] for way in WAYS if way != "adaptive"]
    best = min(fixed, key=lambda spent_s: float(spent_s.sum()))
    found = [f"{tokens * len(of_way['off']) / of_way['off'].sum():.0f}"]
    for way in WAYS[1:]:
        found.append(_ratio(of_way["off"], of_way[way]))
    drafted = servers["adaptive"].runner.counts.totals({})
    per_step = sum(drafted.drafted) / max(1, drafted.steps)
    three = servers["3"].runner.counts.totals({})
    held = [f"{held / max(1, made):.2f}" for held, made in zip(three.accepted, three.drafted, strict=True)]
    return [*found, _ratio(best, of_way["adaptive"]), f"{per_step:.2f}", ", ".join(held)]


def _ratio(first_s: np.ndarray, second_s: np.ndarray) -> str:
    low, _, high = quantiles(first_s / second_s, n=4)
    return f"{first_s.sum() / second_s.sum():.3f} ({low:.2f} to {high:.2f})"


def main(
    model: Annotated[Path, typer.Option(help="Directory with heldout/*.txt.")] = Path("models/potluck-tiny"),
    rounds: Annotated[int, typer.Option(min=3, help="Beside the first, which warms up.")] = 8,
    tokens: Annotated[int, typer.Option(min=8, help="Of each answer.")] = 96,
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
        _line(
            "text", "sequences", "off, tokens/s", *columns, "adaptive, by the best", "drafts a step", "held"
        )
        _line(*["---"] * (len(columns) + 6))
        for name, source, temperature in cases:
            for number in sequences:
                servers = {way: Server.of(way, head, tokenizer, clock) for way in WAYS}
                text = source.read_text(encoding="utf-8")
                asked = requests_of(tokenizer, text, rounds + 1, number, tokens, temperature)
                play(list(servers.values()), asked, prompts)
                _line(name, str(number), *cells(servers, tokens * number))


def _line(*found: str) -> None:
    typer.echo(f"| {' | '.join(found)} |")


if __name__ == "__main__":
    typer.run(main)
