"""Runs a setup and probes it in short turns, so that what else the machine does falls on both.

A machine's own speed moves too, by a third within seconds where others share its cores' clock and memory.
So each run lies between two probes, its prediction is the mean of theirs, and it counts where they agree.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.fidelity.bench import Bench, UncountedExperts
from benchmarks.fidelity.counting import CountingDispatcher
from benchmarks.fidelity.figures import Probes
from benchmarks.fidelity.layouts import Setup, make_plan
from benchmarks.fidelity.predict import cluster_of, predict
from benchmarks.fidelity.probes import probe
from benchmarks.fidelity.processes import running_workers
from orchestrator.dispatch.dispatcher import Dispatcher, unwatched
from orchestrator.dispatch.usage import Usage
from orchestrator.generate import GenerationParams, generate
from orchestrator.model.routing_recorder import RoutingRecorder
from orchestrator.model.step35 import Step35Model
from orchestrator.model.weights import HeadWeights, load_head_weights
from orchestrator.sampling_params import SamplingParams
from placement.given.cluster_spec import ClusterSpec
from placement.message_size import MAX_MESSAGE_ROWS
from placement.model_shape import ModelShape
from placement.plan import Plan
from placement.replay.tally import DispatchCounts
from transport.client import WorkerClient
from workers.formats.checkpoint import Checkpoint
from workers.formats.safetensors import SafetensorsCheckpoint
from workers.model_config import Step35Config
from workers.pool import load_head_tiers
from workers.probe.others import OthersShare
from workers.store import ExpertStore, in_one_form
from workers.tiers import ExpertTier

PROMPT_TOKENS, CHUNK_TOKENS = 384, 256
PROBE_EXPERTS = 8
PROBE_REPEATS = 10
QUIET = 0.04
"""Of the processors' time: a round in which other programs take more is run again."""
STEADY = 0.1
"""So are rounds after which probes predict times that differ by more from those before."""
MOST_ROUNDS = 2
"""So many times the rounds asked for, then the most restful of them count."""


@dataclass(frozen=True, slots=True)
class Model:
    """What all setups share: the head's weights and, for probes, some experts of every layer."""

    directory: Path
    config: Step35Config
    checkpoint: Checkpoint
    shape: ModelShape
    weights: HeadWeights
    probe_store: ExpertStore

    @classmethod
    def load(cls, directory: Path) -> Model:
        config, checkpoint = Step35Config.load(directory), SafetensorsCheckpoint.open(directory)
        shape = config.shape(directory.name)
        some = {layer: range(PROBE_EXPERTS) for layer in shape.moe_layers}
        formats = in_one_form(some, torch.float32)
        store = ExpertStore.load(checkpoint, config, some, formats=formats)
        weights = load_head_weights(checkpoint, config, torch.float32)
        return cls(directory, config, checkpoint, shape, weights, store)


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a run did, the same every time: its passes and what the dispatcher counted."""

    prefill: list[NDArray[np.uint16]]
    decode: list[NDArray[np.uint16]]
    num_tokens: int
    prefill_counts: DispatchCounts
    decode_counts: DispatchCounts
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Seconds predicted for each run, from the probes around it, beside those measured."""

    predicted_s: list[float]
    measured_s: list[float]

    @property
    def error(self) -> float:
        """The median run's."""
        return median(p / m for p, m in zip(self.predicted_s, self.measured_s, strict=True)) - 1

    @property
    def spread(self) -> float:
        """Half of the way from the fastest run to the slowest, by their median: how far runs differ."""
        return (max(self.measured_s) - min(self.measured_s)) / 2 / median(self.measured_s)


@dataclass(frozen=True, slots=True)
class Layout:
    """One setup with a number of drafts: seconds of a decode step, and of the prompt."""

    setup: str
    drafts: int
    decode: Comparison
    prefill: Comparison


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of a decode step, and of the prompt; `..._parts_s`: by part of it, where they are known."""

    decode_s: float
    prefill_s: float
    decode_parts_s: Mapping[str, float] = field(default_factory=dict)
    prefill_parts_s: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Probed:
    """Probes, and what they predict by number of drafts."""

    probes: Probes
    times: dict[int, Times]


@dataclass(frozen=True, slots=True)
class Round:
    """Runs, one with each number of drafts, between two probes.

    `others`: share of the processors that other programs took meanwhile.
    """

    before: Probed
    runs: dict[int, Times]
    after: Probed
    others: float

    @property
    def drift(self) -> float:
        """How far the two probes' predictions differ, the largest of all."""
        pairs = [(self.before.times[drafts], self.after.times[drafts]) for drafts in self.runs]
        ratios = [a.decode_s / b.decode_s for a, b in pairs] + [a.prefill_s / b.prefill_s for a, b in pairs]
        return max(max(ratio, 1 / ratio) for ratio in ratios) - 1

    @property
    def restlessness(self) -> float:
        """Above 1: it is run again."""
        return max(self.others / QUIET, self.drift / STEADY)

    def predicted(self, drafts: int) -> Times:
        a, b = self.before.times[drafts], self.after.times[drafts]
        return Times((a.decode_s + b.decode_s) / 2, (a.prefill_s + b.prefill_s) / 2)


@dataclass(frozen=True, slots=True)
class SetupResult:
    """`rounds`: those that count, the most restful; `discarded`: how many others there were."""

    rounds: list[Round]
    discarded: int
    cluster: ClusterSpec
    layouts: list[Layout]

    @property
    def others(self) -> float:
        """The largest share of the processors that other programs took in a round that counts."""
        return max(r.others for r in self.rounds)

    @property
    def drift(self) -> float:
        """The largest difference between the probes around a round that counts."""
        return max(r.drift for r in self.rounds)


def run_setup(
    model: Model, setup: Setup, *, rounds: int, tokens: int, repeats: int = PROBE_REPEATS
) -> SetupResult:
    """Start the workers, record what each layout does, then probe and run in turns, the first to warm up.

    Raises:
        RuntimeError: a run's counts are not the simulator's, or two runs of a layout differ.
    """
    plan = make_plan(model.shape, setup, model.shape.expert_bytes(32))
    with ExitStack() as stack:
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(1 if setup.num_workers else len(os.sched_getaffinity(0)))
        sockets = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        workers = stack.enter_context(running_workers(setup, plan, model.shape, model.directory, sockets))
        local = load_head_tiers(plan, model.checkpoint, model.config)
        clients = {worker.name: worker.client for worker in workers}
        dispatcher = Dispatcher(*unwatched(plan, clients), local=local, max_rows=MAX_MESSAGE_ROWS)
        head = Step35Model(model.config, model.weights, torch.float32, dispatcher, dispatcher.timer)
        uncounted = UncountedExperts(model.probe_store)
        bare = Step35Model(model.config, model.weights, torch.float32, uncounted)
        bench = Bench(
            model.shape,
            plan,
            model.probe_store,
            bare,
            uncounted,
            dispatcher,
            workers,
            context=PROMPT_TOKENS,
            repeats=repeats,
        )

        recorded = {drafts: record(model, plan, local, clients, drafts, tokens) for drafts in setup.drafts}

        def probed() -> Probed:
            probes = probe(bench)
            cluster = cluster_of(setup, [probes], model.shape, plan)
            return Probed(
                probes, {d: predicted_times(model, plan, cluster, d, r) for d, r in recorded.items()}
            )

        def one_round(before: Probed) -> Round:
            others = OthersShare()
            runs = {}
            for drafts, record in recorded.items():
                result = generate(head, prompt_ids(), _params(drafts, tokens))
                if result.token_ids != record.token_ids:
                    raise RuntimeError(f"{setup.name}: two runs gave different tokens")
                runs[drafts] = Times(result.decode_s / len(record.decode), result.prefill_s)
            return Round(before, runs, probed(), others.share())

        # One to warm up.
        last, found = one_round(probed()), list[Round]()
        while sum(r.restlessness <= 1 for r in found) < rounds and len(found) < MOST_ROUNDS * rounds:
            last = one_round(last.after)
            found.append(last)
    kept = sorted(found, key=lambda r: r.restlessness)[:rounds]
    cluster = cluster_of(setup, [r.after.probes for r in kept], model.shape, plan)
    layouts = [
        Layout(
            setup.name,
            drafts,
            Comparison([r.predicted(drafts).decode_s for r in kept], [r.runs[drafts].decode_s for r in kept]),
            Comparison(
                [r.predicted(drafts).prefill_s for r in kept], [r.runs[drafts].prefill_s for r in kept]
            ),
        )
        for drafts in recorded
    ]
    return SetupResult(kept, len(found) - len(kept), cluster, layouts)


def predicted_times(model: Model, plan: Plan, cluster: ClusterSpec, drafts: int, record: Recorded) -> Times:
    """What the simulator says of the recorded passes.

    Raises:
        RuntimeError: it counts what the dispatcher did not.
    """
    predicted = predict(
        cluster,
        plan,
        model.shape,
        drafts=drafts,
        num_prompt=PROMPT_TOKENS,
        prefill=record.prefill,
        decode=record.decode,
        num_tokens=record.num_tokens,
    )
    check_counts(f"decode with {drafts} drafts", predicted.decode.counts, record.decode_counts)
    check_counts(f"prefill with {drafts} drafts", predicted.prefill.counts, record.prefill_counts)
    return Times(
        predicted.decode.duration_s / len(record.decode),
        predicted.prefill.duration_s,
        {"head": predicted.decode_head_s},
        {"head": predicted.prefill_head_s},
    )


def check_counts(what: str, predicted: DispatchCounts, counted: DispatchCounts) -> None:
    """Raise RuntimeError unless the simulator counted exactly what the dispatcher did."""
    if predicted != counted:
        raise RuntimeError(f"{what}: the simulator counts {predicted}, the dispatcher {counted}")


def prompt_ids() -> list[int]:
    return [int(i) for i in np.random.default_rng(3).integers(3, 4000, PROMPT_TOKENS)]


def _params(drafts: int, tokens: int) -> GenerationParams:
    # Sampled, or a random model repeats itself and its few experts stay in the caches.
    return GenerationParams(
        max_tokens=tokens,
        sampling=SamplingParams(seed=1),
        ignore_eos=True,
        mtp=drafts,
        chunk_size=CHUNK_TOKENS,
    )


def record(
    model: Model,
    plan: Plan,
    local: ExpertTier | None,
    clients: Mapping[str, WorkerClient],
    drafts: int,
    tokens: int,
) -> Recorded:
    """One run that counts and is not timed; it warms up too."""
    dispatcher = CountingDispatcher(plan, local, clients, max_rows=MAX_MESSAGE_ROWS)
    head = Step35Model(model.config, model.weights, torch.float32, dispatcher, dispatcher.timer)
    config = model.config
    head.recorder = RoutingRecorder(config.moe_layers, config.moe_num_experts, config.moe_top_k)
    marks: list[tuple[Usage, list[int]]] = []

    def on_tokens(_: list[int]) -> None:
        if not marks:
            marks.append((dispatcher.usage.copy(), list(dispatcher.experts_read)))

    result = generate(head, prompt_ids(), _params(drafts, tokens), on_tokens)
    if dispatcher.usage.coarsened_rows:
        raise RuntimeError("rows were asked again on a coarser grid, which the simulator leaves out")
    num_chunks = -(-PROMPT_TOKENS // CHUNK_TOKENS)
    passes = head.recorder.passes()
    prefill_usage, prefill_read = marks[0]
    decode_read = [now - then for now, then in zip(dispatcher.experts_read, prefill_read, strict=True)]
    return Recorded(
        prefill=passes[:num_chunks],
        decode=passes[num_chunks:],
        num_tokens=len(result.token_ids) - 1,
        prefill_counts=_counts(prefill_usage, prefill_read),
        decode_counts=_counts(dispatcher.usage.since(prefill_usage), decode_read),
        token_ids=result.token_ids,
    )


def timed_run(
    model: Model,
    plan: Plan,
    local: ExpertTier | None,
    clients: Mapping[str, WorkerClient],
    drafts: int,
    tokens: int,
    recorded: Recorded,
) -> Times:
    """One run of the runtime's own dispatcher.

    Raises:
        RuntimeError: it gives other tokens than the recorded one.
    """
    dispatcher = Dispatcher(*unwatched(plan, clients), local=local, max_rows=MAX_MESSAGE_ROWS)
    head = Step35Model(model.config, model.weights, torch.float32, dispatcher, dispatcher.timer)
    prefill_parts_s: dict[str, float] = {}

    def on_tokens(_: list[int]) -> None:
        if not prefill_parts_s:
            prefill_parts_s.update(dispatcher.timer.seconds())

    result = generate(head, prompt_ids(), _params(drafts, tokens), on_tokens)
    if result.token_ids != recorded.token_ids:
        raise RuntimeError(f"{plan.policy}: two runs gave different tokens")
    steps = len(recorded.decode)
    decode_parts_s = {part: seconds / steps for part, seconds in result.time_s.items()}
    return Times(result.decode_s / steps, result.prefill_s, decode_parts_s, prefill_parts_s)


def _counts(usage: Usage, experts_read: Sequence[int]) -> DispatchCounts:
    return DispatchCounts(
        tuple(usage.activations),
        tuple(experts_read),
        usage.remote_layers,
        usage.messages,
        usage.sent_bytes,
        usage.received_bytes,
    )
