"""How much faster drafts make answers of a form, if they are chosen from what the form allows and if not.

    python -m benchmarks.held_drafts [--answers 16] [--tokens 96] [--sequences 1] [--sequences 4]

Answers continue pieces of a held-out text, or call tools, each in a form: a JSON schema, a regular
expression, strict tools. Every way to draft has a server of its own, as in `benchmarks.draft_depth`. 'Free'
has drafts that are chosen from all tokens, so that many do not fit; 'fitting' has those that the form allows.
All answers must be the same, else it ends with an error. `--random 0.75` takes a model whose MTP layers are
as small a part of a pass as those of Step-3.5-Flash, as `benchmarks.draft_depth` does.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.draft_depth import NARROW, Server, pieces_of, play, temperature_of
from benchmarks.random_gguf import FileTypes, write_random_gguf
from orchestrator.model.mtp import DraftRequest, MtpDrafter
from orchestrator.sampling import Choice
from orchestrator.sampling_params import SamplingParams
from orchestrator.serving.prompts import Prompts
from orchestrator.serving.request import Conversation, GenerationRequest, OutputForm
from orchestrator.session import load_local
from orchestrator.tokenizer import Tokenizer
from workers.formats.open_model import open_model

FIXED = ("1", "2", "3")
WAYS = (*FIXED, "adaptive")
TEMPERATURES = (0.0, 0.7)
_TEXT = {"type": "string", "minLength": 8, "maxLength": 60}
_TASK = {
    "type": "object",
    "properties": {
        "title": _TEXT,
        "priority": {"enum": ["low", "normal", "high"]},
        "steps": {"type": "array", "items": _TEXT, "minItems": 2, "maxItems": 4},
        "hours": {"type": "integer", "minimum": 0, "maximum": 999},
        "done": {"type": "boolean"},
    },
    "required": ["title", "priority", "steps", "hours", "done"],
    "additionalProperties": False,
}
_LINES = r"([0-9]{4}-[0-9]{2}-[0-9]{2} (info|warning|error): [a-z ]{10,60}\n){3,9}"
_EDIT = {
    "type": "object",
    "properties": {
        "path": {"type": "string"},
        "line": {"type": "integer"},
        "mode": {"enum": ["insert", "replace", "delete"]},
        "options": {
            "type": "object",
            "properties": {"force": {"type": "boolean"}, "reason": _TEXT},
            "required": ["force", "reason"],
            "additionalProperties": False,
        },
    },
    "required": ["path", "line", "mode", "options"],
    "additionalProperties": False,
}
_TOOLS = (
    {"type": "function", "function": {"name": "edit", "parameters": _EDIT, "strict": True}},
    {"type": "function", "function": {"name": "note", "parameters": _TASK, "strict": True}},
)


class FreeDrafter(MtpDrafter):
    """Chooses drafts from all tokens, whatever an answer's form allows."""

    def draft(self, requests: Sequence[DraftRequest]) -> list[list[int]]:
        """See `MtpDrafter.draft`."""
        return super().draft([replace(of, choice=partial(_free, of.choice)) for of in requests])


def _free(choice: Callable[[list[int]], Choice], drafts: list[int]) -> Choice:
    return replace(choice(drafts), allowed=None)


def requests_of(
    kind: str, text: Sequence[int], tokenizer: Tokenizer, number: int, tokens: int, temperature: float
) -> list[tuple[int, GenerationRequest]]:
    """So many answers of one form to pieces of a text, as long as `pieces_of` says if the form lets them."""
    found = []
    for place, (piece, limit) in enumerate(pieces_of(text, number, tokens)):
        prompt: Conversation | tuple[int, ...] = piece
        settings: dict[str, Any] = {}
        if kind == "schema":
            settings["output"] = OutputForm("json_schema", json.dumps(_TASK))
        elif kind == "regex":
            settings["output"] = OutputForm("regex", _LINES)
        elif kind == "tools":
            said = {"role": "user", "content": tokenizer.decode(piece)}
            prompt = Conversation((said,), _TOOLS, ("edit", "note", "required")[place % 3])
            settings["reasoning_tokens"] = 0
        else:
            settings["ignore_eos"] = True
        sampling = SamplingParams(temperature=temperature, seed=place)
        found.append((place, GenerationRequest("benchmark", prompt, sampling, max_tokens=limit, **settings)))
    return found


def cells(servers: dict[str, Server], places: int) -> Iterator[str]:
    """Speed without drafts; of each way free and fitting: speed by that, tokens a step, share that held."""
    off = float(servers["off"].speeds()[0])
    yield f"{off:.0f}"
    for way in WAYS:
        found = []
        for drafts in ("free", "fitting"):
            server = servers[f"{way} {drafts}"]
            totals = server.runner.counts.totals({})
            tokens = sum(said for _, said in server.steps) / len(server.steps) / places
            held = sum(totals.accepted) / max(1, sum(totals.drafted))
            found.append(f"{float(server.speeds()[0]) / off:.3f} ({tokens:.2f}, {held:.0%})")
        yield " → ".join(found)


def main(
    model: Annotated[Path, typer.Option(help="Directory with heldout/*.txt.")] = Path("models/potluck-tiny"),
    kinds: Annotated[list[str], typer.Option("--kind")] = ["none", "schema", "regex", "tools"],  # noqa: B006
    answers: Annotated[int, typer.Option(min=4, help="Of each place and form.")] = 16,
    tokens: Annotated[int, typer.Option(min=8, help="Of an answer, on average.")] = 96,
    sequences: Annotated[list[int], typer.Option(min=1, max=8, help="At a time.")] = [1, 4],  # noqa: B006
    random: Annotated[
        float | None, typer.Option(help="Take a random model of many layers; so many free drafts hold.")
    ] = None,
) -> None:
    """Print a row for each form, temperature and number of sequences."""
    torch.set_num_threads(1)
    temperatures = TEMPERATURES if random is None else (temperature_of(random, NARROW.vocab),)
    with tempfile.TemporaryDirectory() as folder:
        path = model
        if random is not None:
            path = write_random_gguf(Path(folder) / "random.gguf", NARROW, FileTypes.all_in("q8_0"))
        head = load_local(open_model(path), torch.bfloat16)
        tokenizer = Tokenizer.load(model)
        prompts = Prompts(tokenizer, head.config.vocab_size, head.config.eos_token_ids)
        text = tokenizer.encode_prompt((model / "heldout" / "technical.txt").read_text(encoding="utf-8"))
        _line("form", "temperature", "sequences", "off, tokens/s", *(f"{way}, by off" for way in WAYS))
        _line(*["---"] * (4 + len(WAYS)))
        for places, kind, temperature in product(sequences, kinds, temperatures):
            servers = {"off": Server.of("off", head, tokenizer, time.thread_time)}
            for way in WAYS:
                for drafts, drafter in (("free", FreeDrafter), ("fitting", MtpDrafter)):
                    servers[f"{way} {drafts}"] = Server.of(way, head, tokenizer, time.thread_time, drafter)
            asked = requests_of(kind, text, tokenizer, answers * places, tokens, temperature)
            play(list(servers.values()), asked, places, prompts)
            _line(kind, f"{temperature:.2g}", str(places), *cells(servers, places))


def _line(*found: str) -> None:
    typer.echo(f"| {' | '.join(found)} |")


if __name__ == "__main__":
    typer.run(main)
