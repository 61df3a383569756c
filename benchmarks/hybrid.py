"""CPU and GPU in one workstation: kernels, the head, decoding and prompts, beside floors and predictions.

    python -m benchmarks.hybrid [--device cuda] [--layers 3] [--vram 8,16,24] [--model FILE.gguf]
    python -m benchmarks.hybrid --on-cpu

Real layer shapes of Step-3.5-Flash with random weights in Q4_K, a few MoE layers of them, so that the model
fits a workstation's RAM; about 2.6 GB a layer, written to a temporary folder unless FILE is there. Tables are
markdown for benchmarks/RESULTS.md, and take less than 3 minutes beside the file.

`--on-cpu` runs the same code on a card that this machine's CPU plays (tests/cuda_on_cpu), with tiny shapes.
Its figures mean nothing: it shows that this script works.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from benchmarks.gpu.caches import cache_table
from benchmarks.gpu.calls import COPIES, GRAPHS, LAUNCHES, WAITS
from benchmarks.gpu.card import CardUnderTest
from benchmarks.gpu.decoding import Decoded, decoded
from benchmarks.gpu.head_step import head_table
from benchmarks.gpu.kernels import KernelSizes, few_rows_table, many_rows_table
from benchmarks.gpu.layouts import DTYPE, Layout, Vram, card_with, layout
from benchmarks.gpu.markdown import table
from benchmarks.gpu.prompts import prompt_table
from benchmarks.random_gguf import SMALL, FileShape, FileTypes, write_random_gguf
from orchestrator.cli.here import Figures, Here
from orchestrator.probe.boxes import this_machine
from orchestrator.probe.cluster import probe_cluster
from orchestrator.run_memory import Demand
from placement.errors import PotluckError
from placement.given.probe import HERE
from placement.given.probe_figures import Gpu
from placement.weight_format import FORMATS
from workers.formats.open_model import OpenModel, open_model
from workers.gpu.modules import LINEAR_FORMS
from workers.probe.experts import Width
from workers.probe.gpu import gpus

TYPES = FileTypes()
"""Q4_K throughout."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured.

    Attributes:
        steps: of decoding, timed, behind `context` positions.
        contexts: of the head alone.
        prompts: their tokens; `turns`: of each.
        probe_s: for this machine's figures.
    """

    kernels: KernelSizes
    steps: int
    context: int
    contexts: tuple[int, ...]
    prompts: tuple[int, ...]
    turns: int
    probe_s: float
    documents: int

    @property
    def demand(self) -> Demand:
        """The longest text."""
        return Demand(max(*self.prompts, *self.contexts, self.context) + self.steps + 64)


REAL = Sizes(
    kernels=KernelSizes(
        forms=LINEAR_FORMS,
        many_rows=(16, 64, 256, 1024),
        expert=(1280, 4096),
        head=(("attention", (96 * 129 + 2 * 8 * 128, 4096)), ("lm_head", (128_896, 4096))),
        least_bytes=256 << 20,
        operations=1e11,
        seconds=0.03,
    ),
    steps=40,
    context=512,
    contexts=(16, 2048),
    prompts=(512, 2048),
    turns=2,
    probe_s=20.0,
    documents=100,
)
TINY = Sizes(
    kernels=KernelSizes(
        forms=("bfloat16", "q4_k", "q8_0"),
        many_rows=(16, 33),
        expert=(64, 256),
        head=(("lm_head", (128, 256)),),
        least_bytes=1,
        operations=1.0,
        seconds=0.0,
    ),
    steps=2,
    context=8,
    contexts=(8,),
    prompts=(20,),
    turns=1,
    probe_s=5.0,
    documents=4,
)
_PLAYED_BYTES = 640_000_000
_PROBED_BYTES = 517_000_000
"""Of the played card while it is probed: 5 MB beside the margin, so that little is computed."""


def measure(
    card: CardUnderTest,
    model: OpenModel,
    shape: FileShape,
    vram: Sequence[Vram],
    sizes: Sizes,
    show: Callable[[str], None],
) -> None:
    """All tables, one after another."""
    figures, gpu = probed(card, model, shape, sizes)
    _show_figures(figures, gpu, show)
    few_rows_table(card, sizes.kernels, gpu.bandwidth_bytes_per_s, show)
    many_rows_table(card, sizes.kernels, show)
    here = Here.of(model, DTYPE, sizes.demand, None, figures)
    layouts = list(_layouts(card, model, here, vram, sizes))
    for each in layouts:
        print(f"{each.name}: {each.box.reason}", file=sys.stderr)
    with_head = [each for each in layouts if each.box.split is not None and each.box.split.is_all_in_vram]
    if with_head:
        head_table(
            with_head[-1],
            model,
            gpu,
            contexts=sizes.contexts,
            steps=sizes.steps,
            demand=sizes.demand,
            show=show,
        )
    run = partial(decoded, model=model, figures=figures, gpu=gpu, context=sizes.context, steps=sizes.steps)
    _show_steps([run(each, demand=sizes.demand) for each in layouts], sizes, show)
    mixed = [each for each in layouts if each.is_on_card and not each.is_all_on_card]
    if mixed:
        prompt_table(
            mixed[:: max(1, len(mixed) - 1)],
            model,
            prompts=sizes.prompts,
            turns=sizes.turns,
            demand=sizes.demand,
            show=show,
        )
    shares = [(f"{each.whole_bytes / 1e9:.0f} GB", each.expert_share) for each in vram]
    cache_table(figures, card.device.name, shares, show, sizes.documents)


def probed(card: CardUnderTest, model: OpenModel, shape: FileShape, sizes: Sizes) -> tuple[Figures, Gpu]:
    """This machine's figures, as `potluck probe` measures them, and the card's among them."""
    form = TYPES.head
    found = probe_cluster([this_machine(model.path)], HERE, [form], _tell, sizes.probe_s).probe
    node = found.nodes[HERE]
    if not any(gpu.device == card.device.name and gpu.kernels for gpu in node.gpus):
        # A card that only this process has.
        width = Width(shape.hidden, shape.expert_width)
        measured = gpus([card.device], [FORMATS[form]], width, 0.1 * sizes.probe_s)
        if card.is_played:
            measured = tuple(map(_much_faster, measured))
            CardUnderTest.played(_PLAYED_BYTES)
        node = node.model_copy(update={"gpus": measured})
    figures = Figures(node, found.software)
    gpu = figures.card(card.device.name)
    if gpu is None:
        raise PotluckError(f"{card.device.name}: too little of its memory is free to measure with")
    return figures, gpu


def _much_faster(played: Gpu) -> Gpu:
    """So that plans use it at all."""
    kernels = tuple(
        rate.model_copy(update={"flops_per_s": tuple(1e6 * flops for flops in rate.flops_per_s)})
        for rate in played.kernels
    )
    return played.model_copy(
        update={
            "kernels": kernels,
            "bandwidth_bytes_per_s": 1e3 * played.bandwidth_bytes_per_s,
            "flops_per_s": 1e6 * played.flops_per_s,
            "round_trip_s": 1e-5,
        }
    )


def _layouts(
    card: CardUnderTest, model: OpenModel, here: Here, vram: Sequence[Vram], sizes: Sizes
) -> list[Layout]:
    """All on the CPU, each amount of VRAM that the card has free, and all that it has."""
    free, demand = card.device.free_bytes, sizes.demand
    found = [layout("CPU alone", model, here, demand, None)]
    for each in vram:
        name = f"{each.whole_bytes / 1e9:.0f} GB"
        if each.free_bytes <= free:
            found.append(layout(name, model, here, demand, card_with(card.device, each.free_bytes)))
        else:
            print(f"{name}: more than the card has free; left out", file=sys.stderr)
    most = layout("all the card has", model, here, demand, card_with(card.device, free))
    return [*found, replace(most, name="all in VRAM") if most.is_all_on_card else most]


def _show_figures(figures: Figures, gpu: Gpu, show: Callable[[str], None]) -> None:
    back = gpu.back_bytes_per_s or 0.0
    show(
        f"This machine, as `potluck probe` measures it: VRAM {gpu.bandwidth_bytes_per_s / 1e9:.0f} GB/s, RAM "
        f"{figures.node.read_bytes_per_s / 1e9:.1f} GB/s with {figures.node.threads} threads "
        f"({figures.node.instruction_set}), to the card {gpu.copy_bytes_per_s / 1e9:.1f} GB/s, back "
        f"{back / 1e9:.1f} GB/s, there and back with a row {1e6 * gpu.round_trip_s:.0f} µs.\n"
    )


def _show_steps(found: Sequence[Decoded], sizes: Sizes, show: Callable[[str], None]) -> None:
    lines, asked = [], []
    for each in found:
        predicted = "" if each.predicted_s is None else f"{1 / each.predicted_s:.1f}"
        ratio = "" if each.predicted_s is None else f"{each.predicted_s / each.step_s:.2f}"
        lines.append(
            [
                each.name,
                f"{1 / each.step_s:.1f}",
                predicted,
                ratio,
                f"{each.vram_bytes / 1e6:.0f}",
                f"{each.ram_bytes / 1e6:.0f}",
                f"{1 / each.floor_s:.1f}",
                f"{each.floor_s / each.step_s:.2f}",
            ]
        )
        calls = (sum(each.calls[name] for name in names) for names in ((LAUNCHES,), (GRAPHS,), WAITS, COPIES))
        asked.append([each.name, *map(str, calls)])
    show(
        f"\n**Decoding** behind {sizes.context} positions, the median of {sizes.steps} steps with random "
        "tokens. Predicted: by the cost model from the figures above; the aim is 0.9 to 1.1. At most: "
        "max(bytes in VRAM / its rate, bytes in RAM / its rate + a round trip in each layer that asks RAM); "
        "the aim is 0.9.\n"
    )
    heading = ("VRAM", "tokens/s", "predicted", "measured / predicted", "MB of VRAM", "MB of RAM", "at most")
    show(table((*heading, "measured / most"), lines))
    show("\n**Asked of the card** in a step (kernels and copies within graphs are not counted again):\n")
    show(table(("VRAM", "kernels launched", "graphs", "waits", "copies"), asked))


def _tell(name: str, what: str) -> None:
    print(f"measuring {what}", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--layers", type=int, default=3, help="MoE layers")
    parser.add_argument("--vram", help="GB of cards, with commas")
    parser.add_argument("--model", type=Path, help="the random model, kept here and used again")
    parser.add_argument("--on-cpu", action="store_true", help="tiny, on a card that the CPU plays")
    asked = parser.parse_args()
    command = shlex.join(["python", "-m", "benchmarks.hybrid", *sys.argv[1:]])
    # Of the tiny model the head alone takes more than what 24 GB are for the whole one.
    amounts = (asked.vram or ("64" if asked.on_cpu else "8,16,24")).split(",")
    if not all(amount.isdecimal() and int(amount) for amount in amounts) or asked.layers < 1:
        parser.error("expected --vram as GB with commas, such as 8,16, and --layers 1 or more")
    sizes, shape = (TINY, SMALL) if asked.on_cpu else (REAL, FileShape())
    shape = replace(shape, dense_layers=0, mtp_layers=0, moe_layers=2 if asked.on_cpu else asked.layers)
    try:
        if asked.on_cpu:
            CardUnderTest.played(_PROBED_BYTES)
        with tempfile.TemporaryDirectory(prefix="potluck-") as folder:
            path = asked.model or Path(folder) / "random.gguf"
            if not path.exists():
                print(f"writing {path}", file=sys.stderr)
                write_random_gguf(path, shape, TYPES)
            card = CardUnderTest.played(_PROBED_BYTES) if asked.on_cpu else CardUnderTest.real(asked.device)
            positions = sizes.demand.positions
            vram = [Vram.of(int(amount) * 10**9, shape, TYPES, positions) for amount in amounts]
            _heading(card, command, shape, vram)
            measure(card, open_model(path), shape, vram, sizes, partial(print, flush=True))
    except PotluckError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


def _heading(card: CardUnderTest, command: str, shape: FileShape, vram: Sequence[Vram]) -> None:
    print(f"## CPU and GPU in one workstation\n{card.heading(command)}\n")
    if card.is_played:
        print("**This machine's CPU plays the card, with tiny shapes: the figures mean nothing.**\n")
    given = ", ".join(f"{each.whole_bytes / 1e9:.0f} GB as {each.usable_bytes / 1e9:.2f}" for each in vram)
    print(
        f"Step-3.5-Flash's layer shapes in Q4_K, {shape.moe_layers} MoE layers ({vram[0].layer_share:.1%} of "
        "the bytes of all its layers). VRAM is cut to the same share, but for lm_head and what computing "
        f"takes: {given} GB.\n"
    )


if __name__ == "__main__":
    main()
