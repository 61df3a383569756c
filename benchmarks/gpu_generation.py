"""A small random model on the CPU, with its head on a card, and with experts there as well: the same tokens.

    python -m benchmarks.gpu_generation [--device cuda] [--on-cpu] [--tokens 24] [--types q4_k,q8_0,bfloat16]

Each type of weights, greedy and at a temperature, behind prompts that take one pass and several. Every token
and every bit of the hidden states must be those of the CPU. With `--on-cpu` this machine's CPU plays the card
(tests/cuda_on_cpu). Ends with exit code 1 at a difference.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.gpu.card import CardUnderTest
from benchmarks.gpu.markdown import table
from benchmarks.random_gguf import SMALL, FileTypes, write_random_gguf
from orchestrator.generate import GenerationParams
from orchestrator.model.attention import SequenceSlice
from orchestrator.one_box import one_box_plan
from orchestrator.sampling_params import SamplingParams
from orchestrator.session import Session, open_session
from placement.errors import PotluckError
from placement.holders import HolderTable
from placement.plan import LOCAL_WORKER, Plan, PlannedTier
from workers.formats.open_model import OpenModel, open_model

_SHAPE = replace(SMALL, moe_layers=2, mtp_layers=0)
_PROMPTS = (5, 40)
_PASS_ROWS = 32
_PLAYED_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Placement:
    """`on_card`: share of the experts; `head`: whether the head is there."""

    name: str
    head: bool
    on_card: float


PLACEMENTS = (
    Placement("CPU", False, 0.0),
    Placement("head on the card", True, 0.0),
    Placement("half of the experts on the card", False, 0.5),
    Placement("head and half of the experts", True, 0.5),
    Placement("all on the card", True, 1.0),
)


def plan_of(model: OpenModel, placement: Placement, device: str) -> Plan:
    """Every other expert, or as many as are asked for, on the card."""
    plan = one_box_plan(model, "bfloat16")
    room = sum(plan.bytes_per_tier().tolist())
    kinds = (("head" if placement.head else "head-gpu", device, "vram"),)
    names = (*kinds, ("head-ram" if placement.head else LOCAL_WORKER, "cpu", "ram"))
    tiers = tuple(
        PlannedTier(name, LOCAL_WORKER, on, kind, room, worker=LOCAL_WORKER) for name, on, kind in names
    )
    layers, experts = plan.holder_table.table.shape[:2]
    in_ram = np.tile(np.arange(experts) / experts >= placement.on_card, (layers, 1))
    # Not the first ones: neighbours in the file would hide a wrong address.
    in_ram = np.random.default_rng(3).permuted(in_ram, axis=1)
    return replace(plan, tiers=tiers, holder_table=HolderTable.from_single(in_ram.astype(np.int16)))


def told(session: Session, tokens: int) -> list[str]:
    """Token ids of each prompt and temperature, and the bits of the hidden states behind the longest."""
    rng, found = np.random.default_rng(5), []
    head = session.head
    for length in _PROMPTS:
        prompt = rng.integers(3, head.config.vocab_size, length).tolist()
        for temperature in (0.0, 1.1):
            params = GenerationParams(
                tokens, SamplingParams(temperature, seed=9), ignore_eos=True, chunk_size=_PASS_ROWS
            )
            found.append(" ".join(map(str, session.generate(prompt, params).token_ids)))
    cache, states = head.new_cache(), []
    for start in range(0, length, _PASS_ROWS):
        ids = torch.tensor(prompt[start : start + _PASS_ROWS])
        states.append(head.forward(ids, [SequenceSlice(cache, len(ids))]).numpy().tobytes())
    found.append(hashlib.sha256(b"".join(states)).hexdigest()[:16])
    return found


@contextmanager
def _model(form: str) -> Iterator[OpenModel]:
    with tempfile.TemporaryDirectory(prefix="potluck-") as folder:
        yield open_model(write_random_gguf(Path(folder) / f"{form}.gguf", _SHAPE, FileTypes.all_in(form)))


def compare(card: CardUnderTest, forms: list[str], tokens: int) -> list[tuple[str, str, bool]]:
    """Type, placement, and whether all is as on the CPU."""
    lines = []
    for form in forms:
        with _model(form) as model:
            expected: list[str] = []
            for placement in PLACEMENTS:
                plan = one_box_plan(model, "bfloat16")
                if placement.head or placement.on_card:
                    plan = plan_of(model, placement, card.device.name)
                with open_session(model, plan, positions=max(_PROMPTS) + tokens) as session:
                    found = told(session, tokens)
                expected = expected or found
                lines.append((form, placement.name, found == expected))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--on-cpu", action="store_true")
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--types", default="q4_k,q5_k,q6_k,q8_0,q3_k,iq4_xs,bfloat16")
    asked = parser.parse_args()
    try:
        card = CardUnderTest.played(_PLAYED_BYTES) if asked.on_cpu else CardUnderTest.real(asked.device)
        print(f"{card.device.name}: {card.device.facts.model}", flush=True)
        lines = compare(card, asked.types.split(","), asked.tokens)
    except PotluckError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    rows: dict[str, list[str]] = {placement.name: [] for placement in PLACEMENTS[1:]}
    for _, name, same in lines:
        if name in rows:
            rows[name].append("same" if same else "DIFFERENT")
    print(table(("", *asked.types.split(",")), [[name, *cells] for name, cells in rows.items()]))
    sys.exit(0 if all(same for *_, same in lines) else 1)


if __name__ == "__main__":
    main()
