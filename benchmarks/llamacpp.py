"""llama.cpp's own benchmarks on a GGUF file, where a build of it is at hand.

    python -m benchmarks.llamacpp FILE.gguf [--llamacpp DIR] [--threads 2]

DIR, or the variable LLAMACPP_BIN, holds `llama-bench` and `llama-batched-bench`. Both choose tokens by lot.
Each figure is the better of flash attention off and on.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

VARIABLE = "LLAMACPP_BIN"
PASS_ROWS = (1, 2, 3, 4, 8)
LOGITS = "llama-logits"
"""MODEL THREADS: token ids on standard input, out come float32 logits of each, row by row. Thirty lines of C
against libllama, for whoever wants llama.cpp's rounding beside ours."""
_BENCH, _BATCHED = "llama-bench", "llama-batched-bench"
_PROMPT, _STEPS = 16, 16
"""Of the runs that time passes of several rows: tokens before them, and passes of each size."""


@dataclass(frozen=True, slots=True)
class LlamaCpp:
    """A build in `folder`, run with so many threads."""

    folder: Path
    threads: int

    @classmethod
    def find(cls, folder: Path | None, threads: int) -> LlamaCpp | None:
        """The build in `folder`, else where LLAMACPP_BIN says; None where neither has the programs."""
        place = folder or Path(os.environ.get(VARIABLE, ""))
        has_all = all(os.access(place / name, os.X_OK) for name in (_BENCH, _BATCHED))
        return cls(place.resolve(), threads) if has_all else None

    def decode_s(self, model: Path, context: int, *, tokens: int = 24, rounds: int = 3) -> float:
        """Seconds a token behind `context` others: the median round's."""
        arguments = ("-p", "0", "-n", str(tokens), "-d", str(context), "-fa", "0,1", "-r", str(rounds))
        return best_of(self._bench(model, arguments)) / tokens

    def prefill_s(self, model: Path, tokens: int = 512, *, rounds: int = 3) -> float:
        """Seconds of a prompt: the median round's."""
        arguments = ("-p", str(tokens), "-n", "0", "-fa", "0,1", "-r", str(rounds))
        return best_of(self._bench(model, arguments))

    def pass_s(self, model: Path, rows: Sequence[int] = PASS_ROWS) -> dict[int, float]:
        """Seconds of a pass that gives logits of so many tokens, each of a sequence of its own.

        As much work as the same number of tokens of one sequence, but for the few keys behind them.
        """
        # It may end before its last line is out, so what comes last is not needed.
        places = ",".join(map(str, (*rows, rows[0])))
        context = (_PROMPT + _STEPS) * max(rows) * 2
        arguments = ("-c", str(context), "-npp", str(_PROMPT), "-ntg", str(_STEPS), "-npl", places)
        lines = self._run(_BATCHED, model, (*arguments, "--output-format", "jsonl"))
        return passes(lines)

    @property
    def gives_logits(self) -> bool:
        """Whether the folder has LOGITS too, which is none of llama.cpp's own programs."""
        return os.access(self.folder / LOGITS, os.X_OK)

    def logits(self, model: Path, token_ids: Sequence[int], vocab: int) -> NDArray[np.float32]:
        """float32 [num_tokens, vocab] of one text, keys and values in float32.

        Raises:
            RuntimeError: LOGITS failed.
        """
        command = [str(self.folder / LOGITS), str(model), str(self.threads)]
        text = " ".join(map(str, token_ids)).encode()
        done = subprocess.run(command, input=text, capture_output=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{LOGITS} ended with {done.returncode}")
        return np.frombuffer(done.stdout, np.float32).reshape(len(token_ids), vocab)

    def _bench(self, model: Path, arguments: Sequence[str]) -> str:
        return self._run(_BENCH, model, (*arguments, "-o", "json"))

    def _run(self, program: str, model: Path, arguments: Sequence[str]) -> str:
        """
        Raises:
            RuntimeError: the program failed; with its last line.
        """
        command = [str(self.folder / program), "-m", str(model), "-t", str(self.threads), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines()
            raise RuntimeError(
                f"{program} ended with {done.returncode}: {said[-1] if said else 'no message'}"
            )
        return done.stdout


def best_of(output: str) -> float:
    """Seconds of a repetition, out of llama-bench's JSON: the quickest setting's median."""
    tests: list[dict[str, Any]] = json.loads(output)
    return min(float(median(test["samples_ns"])) for test in tests) * 1e-9


def passes(lines: str) -> dict[int, float]:
    """Seconds a pass by its rows, out of llama-batched-bench's JSON lines; the first line of each counts."""
    found: dict[int, float] = {}
    for line in lines.splitlines():
        if line.startswith("{"):
            run = json.loads(line)
            found.setdefault(run["pl"], run["t_tg"] / run["tg"])
    return found


def main(
    model: Annotated[Path, typer.Argument(metavar="FILE.gguf")],
    llamacpp: Annotated[Path | None, typer.Option(help=f"Folder of the build; default {VARIABLE}.")] = None,
    threads: Annotated[int, typer.Option(min=1)] = os.cpu_count() or 1,
    context: Annotated[
        int, typer.Option(min=1, help="Of the second decode; filling it takes minutes.")
    ] = 4096,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
) -> None:
    """Print decode, passes of several tokens, and prefill."""
    build = LlamaCpp.find(llamacpp, threads)
    if build is None:
        print(f"no llama.cpp: --llamacpp or {VARIABLE} names no folder with {_BENCH} and {_BATCHED}")
        raise typer.Exit(0)
    print(f"{build.folder}, {threads} threads, {model}")
    for number, seconds in build.pass_s(model).items():
        print(f"pass of {number}: {seconds * 1e3:8.2f} ms, {number / seconds:7.2f} tokens/s", flush=True)
    seconds = build.prefill_s(model, rounds=rounds)
    print(f"prefill of 512: {seconds:.2f} s, {512 / seconds:.1f} tokens/s", flush=True)
    for behind in (0, context):
        seconds = build.decode_s(model, behind, rounds=rounds)
        print(f"decode behind {behind:,}: {seconds * 1e3:.2f} ms, {1 / seconds:.2f} tokens/s", flush=True)


if __name__ == "__main__":
    typer.run(main)
