"""Damaged model files, thousands of them: each is read, or refused in one line. Nothing else may happen.

    python -m benchmarks.fuzz_formats [--seconds 60] [--first-seed 0] [--kind gguf]

A case is a small model of which some bytes were changed: numbers in headers made absurd, bits turned, parts
cut off, moved, doubled or taken from another file. It is read as a run reads it, and runs. A case that
ends otherwise than in `PotluckError` with one line, takes more than `MOST_CASE_S` or asks for gigabytes of
memory is told with its seed, and the command ends with exit code 1.
"""

from __future__ import annotations

import re
import resource
import shutil
import signal
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import gguf
import numpy as np
import torch
import typer

from benchmarks.random_gguf import SMALL, FileTypes, write_random_gguf
from models.tiny.gguf_file import write_gguf
from orchestrator.generate import GenerationParams, generate
from orchestrator.session import load_local
from orchestrator.tokenizer import Tokenizer
from placement.errors import PotluckError
from tests.tiny_checkpoint import ExpertNames, write_random_checkpoint
from tests.workers.formats.fp8_files import experts_in_fp8
from tests.workers.formats.gguf_files import in_parts, trunk_and_mtp, without
from workers.formats.contents import model_contents
from workers.formats.dequantise import float32_rows
from workers.formats.open_model import open_model

MOST_CASE_S = 20
MEMORY_BYTES = 3 << 30
"""More addresses than the command itself takes: a case that wants them all is an error."""

_NUMBERS = (0, 1, 2, 31, 255, 2**16, 2**31 - 1, 2**31, 2**32, 2**40, 2**62, 2**63, 2**64 - 1)


class Kind(StrEnum):
    """What is damaged."""

    GGUF = "gguf"
    SPLIT = "split"
    MTP = "mtp"
    SAFETENSORS = "safetensors"
    TOKENIZER = "tokenizer"


@dataclass(frozen=True, slots=True)
class Seed:
    """A whole model: files by name, the one to open, and how it is read."""

    files: Mapping[str, bytes]
    opened: str
    read: Callable[[Path], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How many cases were read, refused (by the first words of what was said), or ended otherwise."""

    num_read: int
    refused: Mapping[str, int]
    failures: tuple[str, ...]


def fuzz(kind: Kind, seeds: Iterator[int], work: Path, until: float = float("inf")) -> Outcome:
    """Read a damaged model for each seed, until time.process_time() is `until`.

    Args:
        work: an empty folder for the files.
    """
    models = _models(kind, work / "models")
    num_read, refused, failures = 0, Counter[str](), []
    case = work / "case"
    for seed in seeds:
        if time.process_time() > until:
            break
        random = np.random.default_rng([seed, list(Kind).index(kind)])
        model = models[int(random.integers(len(models)))]
        shutil.rmtree(case, ignore_errors=True)
        case.mkdir(parents=True)
        for name, content in _damaged(model.files, random).items():
            (case / name).write_bytes(content)
        try:
            # A warning would be a line more.
            with _limited(), warnings.catch_warnings(action="error"):
                model.read(case / model.opened)
            num_read += 1
        except PotluckError as error:
            message = str(error).replace(str(case), "")
            refused[" ".join(message.split()[1:4])] += 1
            if "\n" in message or len(message) > 1000:
                failures.append(f"seed {seed}: not one line of reasonable length: {message[:200]!r}")
        except KeyboardInterrupt:
            break
        except BaseException as error:
            failures.append(f"seed {seed}: {type(error).__name__}: {str(error)[:200]}")
    return Outcome(num_read, refused, tuple(failures))


class _TooLong(Exception):
    """A case took more than MOST_CASE_S."""


@contextmanager
def _limited() -> Iterator[None]:
    def stop(number: int, frame: object) -> None:
        raise _TooLong

    # Time of computing: other work on the machine is no fault of a case.
    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, MOST_CASE_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _damaged(files: Mapping[str, bytes], random: np.random.Generator) -> dict[str, bytes]:
    """Some of the files with some damage, mostly near their beginning, where headers are."""
    found = dict(files)
    names = sorted(found)
    for _ in range(int(random.integers(1, 4))):
        name = names[int(random.integers(len(names)))]
        if random.random() < 0.05:
            found[name] = files[names[int(random.integers(len(names)))]]
        elif random.random() < 0.02:
            found.pop(name, None)
        elif name in found:
            found[name] = _changed(found[name], random)
    return found


# What stands in front of values in headers.
_KEYS = re.compile(rb"step35\.\w|tokenizer\.|split\.|general\.|\.weight|\"(shape|dtype|data_offsets)\":|\": ")
_DIGITS = re.compile(rb"[0-9]+")


def _changed(content: bytes, random: np.random.Generator) -> bytes:
    wrong = bytearray(content)
    if len(wrong) < 16:
        return bytes(wrong)
    at = _place(wrong, random)
    length = int(random.integers(1, 9))
    match int(random.integers(8)):
        case 0 | 1:
            wrong[at] ^= 1 << int(random.integers(8))
        case 2:
            wrong[at] = int(random.integers(256))
        case 3:
            number = _NUMBERS[int(random.integers(len(_NUMBERS)))]
            width = int(random.choice([1, 4, 8]))
            wrong[at : at + width] = (number % (1 << (8 * width))).to_bytes(width, "little")
        case 4:
            digits = _DIGITS.search(wrong, at)
            if digits is not None:
                number = _NUMBERS[int(random.integers(len(_NUMBERS)))]
                wrong[digits.start() : digits.end()] = str(number).encode()
        case 5 if random.random() < 0.3:
            del wrong[at:]
        case 6:
            other = _place(wrong, random)
            wrong[at : at + length] = wrong[other : other + length]
        case _:
            wrong[at] = (wrong[at] + int(random.integers(-2, 3))) % 256
    return bytes(wrong)


def _place(content: bytearray, random: np.random.Generator) -> int:
    """Mostly behind a key of a header, else anywhere, near the beginning more often."""
    if random.random() < 0.7:
        keys = list(_KEYS.finditer(content, 0, 1 << 16))
        if keys:
            at = keys[int(random.integers(len(keys)))].end() + int(random.integers(40))
            return min(at, len(content) - 8)
    reach = min(len(content), 1 << int(random.integers(4, 20)))
    return int(random.integers(max(1, reach - 8)))


def read_model(path: Path) -> None:
    """All that a run reads of a model's weights, then a short text."""
    model_contents(path)
    model = open_model(path)
    config, checkpoint = model
    # Some of all: to take blocks apart costs more than all the rest.
    for name in list(checkpoint.stored)[:: 1 + len(checkpoint.stored) // 12]:
        checkpoint.tensor(name, torch.float32)
    embedding = checkpoint.matrix("model.embed_tokens.weight")
    float32_rows(embedding, torch.tensor([0, embedding.rows - 1]))
    for layer in config.moe_layers:
        checkpoint.expert_format(layer, config)
        checkpoint.expert(layer, config.moe_num_experts - 1, config)
    checkpoint.check_unchanged()
    checkpoint.release()
    head = load_local(model, torch.float32)
    generate(head, [3, 1, 2], GenerationParams(2, ignore_eos=True, mtp=min(1, len(head.weights.mtp))))


def read_tokenizer(path: Path) -> None:
    """All that a run asks of a tokenizer."""
    tokenizer = Tokenizer.load(path)
    ids = tokenizer.encode_prompt("It's 1234 naïve 東京\n\n <|im_start|>")
    tokenizer.decode(ids)
    tokenizer.decode(range(tokenizer.vocab_size))


def _models(kind: Kind, work: Path) -> list[Seed]:
    """Whole models of a kind; small, so that most of their bytes are header."""
    work.mkdir(parents=True)
    if kind is Kind.SAFETENSORS:
        fp8 = experts_in_fp8(_random_directory(work / "fp8"))
        parts = _random_directory(work / "parts", num_shards=2, expert_names="experts")
        return [_directory(fp8), _directory(parts)]
    if kind in (Kind.TOKENIZER, Kind.GGUF):
        directory = _random_directory(work / "t")
        write_gguf(directory, work / "t.gguf")
    if kind is Kind.TOKENIZER:
        names = [tensor.name for tensor in gguf.GGUFReader(work / "t.gguf").tensors]
        return [_files([without(work / "t.gguf", work / "no-weights.gguf", *names)], read_tokenizer)]
    shape = replace(SMALL, moe_layers=2, mtp_layers=1, experts=2, top_k=1, vocab=32, dense_width=256, heads=2)
    shape = replace(shape, sliding_heads=2, kv_heads=1)
    types = FileTypes((("iq3_s", "q4_k", "q5_k"), ("mxfp4", "q2_k", "bfloat16")), "q8_0", "q6_k", "iq4_nl")
    whole = write_random_gguf(work / "m.gguf", shape, types)
    if kind is Kind.GGUF:
        return [_files([whole], read_model), _files([work / "t.gguf"], read_model)]
    if kind is Kind.SPLIT:
        return [_files(in_parts(whole, work / "part", 2), read_model)]
    (work / "mtp").mkdir()
    return [_files(list(trunk_and_mtp(whole, work / "mtp", shape.layers)), read_model)]


def _files(paths: list[Path], read: Callable[[Path], None]) -> Seed:
    return Seed({path.name: path.read_bytes() for path in paths}, paths[0].name, read)


def _random_directory(work: Path, num_shards: int = 1, expert_names: ExpertNames = "stacked") -> Path:
    return write_random_checkpoint(
        work, seed=3, num_layers=3, moe_layers=(1, 2), num_experts=4, top_k=2, tokenizer=True,
        num_shards=num_shards, expert_names=expert_names,
    )  # fmt: skip


def _directory(work: Path) -> Seed:
    files = {path.name: path.read_bytes() for path in work.iterdir() if "tokenizer" not in path.name}
    return Seed(files, ".", read_model)


def main(
    seconds: Annotated[float, typer.Option(min=1, help="Of computing, for all kinds together.")] = 60.0,
    first_seed: Annotated[int, typer.Option(min=0)] = 0,
    kind: Annotated[Kind | None, typer.Option(help="One kind alone.")] = None,
) -> None:
    """Damage model files and read them."""
    kinds = [kind] if kind is not None else list(Kind)
    resource.setrlimit(resource.RLIMIT_AS, (_addresses() + MEMORY_BYTES, resource.RLIM_INFINITY))
    failed = False
    for one in kinds:
        until = time.process_time() + seconds / len(kinds)
        with tempfile.TemporaryDirectory() as work:
            outcome = fuzz(one, _count_from(first_seed), Path(work), until)
        num_refused = sum(outcome.refused.values())
        print(
            f"{one}: {outcome.num_read + num_refused} cases, {num_refused} refused, {outcome.num_read} read"
        )
        for message, times in Counter(outcome.refused).most_common(8):
            print(f"  {times:7} … {message}", flush=True)
        for failure in outcome.failures[:20]:
            print(f"  FAILED {failure}")
        failed = failed or bool(outcome.failures)
    if failed:
        raise typer.Exit(1)


def _addresses() -> int:
    """Bytes of addresses that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _count_from(first: int) -> Iterator[int]:
    while True:
        yield first
        first += 1


if __name__ == "__main__":
    typer.run(main)
