"""Experts that follow the traffic on a cluster of two hosts here, by `potluck` commands alone.

    sudo python -m benchmarks.migration_hosts

The hosts are network namespaces (`benchmarks.namespaces`); their link is a slow one, 20 Mbit/s, where speed
is measured. The plan is made for one domain. Runs of it come first, then runs of another; in one that takes
long enough experts move. Printed is how fast text of the second domain is written before and after, what
`potluck status` says, and whether the tokens are those of one process.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cluster_of_hosts import write_cluster_file
from benchmarks.namespaces import Host, hosts, why_no_hosts
from orchestrator.tokenizer import Tokenizer

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "models" / "potluck-tiny"
NET = "10.45.0.0/24"
PATIENCE_S = 1200.0
_RATE, _RATE_GBITS = "20mbit", "0.02"
# The test of a change compares with 4,096 tokens; a run of the second domain has as much as a plan needs.
_FIRST_TOKENS, _SECOND_TOKENS, _WRITTEN, _LONG = 4300, 2600, 200, 5000
_SHOWN_TOKENS = 300


def potluck(host: Host, *arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output, standard error of a command on a host."""
    words = " ".join(f"'{word}'" for word in arguments)
    program = f"{sys.executable} -c 'from orchestrator.cli.main import main; main()'"
    done = host.run(f"cd / && PYTHONPATH={ROOT} {program} {words}", check=False, timeout_s=PATIENCE_S)
    return done.returncode, done.stdout, done.stderr


def said(host: Host, *arguments: object) -> dict[str, Any]:
    """What a command prints as JSON."""
    print(f"{arguments[0]} …", file=sys.stderr, flush=True)
    code, out, err = potluck(host, *arguments, "--json")
    if code:
        raise RuntimeError(f"{arguments}: {code}: {out}{err}")
    print(err, end="", file=sys.stderr)
    found: dict[str, Any] = json.loads(out)
    return found


def written(host: Host, how: tuple[object, ...], ids: list[int], num_tokens: int) -> dict[str, Any]:
    """A run."""
    text = ",".join(map(str, ids))
    began_s = time.monotonic()
    found = said(host, "generate", *how, "--token-ids", text, "--ignore-eos", "--max-tokens", num_tokens)
    print(f"  {time.monotonic() - began_s:.0f} s, {_step_ms(found):.1f} ms a token", file=sys.stderr)
    return found


def _step_ms(run: dict[str, Any]) -> float:
    decode_s, steps = float(run["decode_s"]), int(run["steps"])
    return 1e3 * decode_s / max(steps, 1)


def main() -> None:
    """Print a table."""
    reason = why_no_hosts()
    if reason is not None:
        sys.exit(f"benchmarks.migration_hosts: {reason}")
    tokenizer = Tokenizer.load(MODEL)
    python, prose = (
        tokenizer.encode((MODEL / "heldout" / f"{name}.txt").read_text()) for name in ("python", "prose")
    )
    shown = prose[-_SHOWN_TOKENS:]
    with hosts(2, NET) as made:
        head, other = made
        file = write_cluster_file(head.home, made, name="mg")
        file.write_text(file.read_text().replace("gbits_per_s: 10}", f"gbits_per_s: {_RATE_GBITS}}}"))
        text, routing, plan = (head.home / name for name in ("python.txt", "python.npz", "plan.json"))
        text.write_text(tokenizer.decode(python[: 2 * _FIRST_TOKENS]))
        said(head, "stats", text, "--model", MODEL, "--trace", "--out", routing)
        usual = ("--context", 512, "--prompt-ratio", 0, "--survive", 0)
        said(head, "plan", file, "--model", MODEL, "--stats", routing, *usual, "--out", plan)
        said(head, "up", file, "--model", MODEL, "--plan", plan)
        try:
            cluster = ("--cluster", file)
            written(head, cluster, python[-_FIRST_TOKENS:], _WRITTEN)
            other.shape(_RATE, burst="3200")
            before = written(head, cluster, shown, _WRITTEN)
            # Prompts of thousands of tokens take minutes on such a link.
            other.shape("1gbit")
            written(head, cluster, prose[:_SECOND_TOKENS], 1)
            long = written(head, cluster, prose[:_SECOND_TOKENS], _LONG)
            _, table, words = potluck(head, "status", file)
            other.shape(_RATE, burst="3200")
            after = written(head, cluster, shown, _WRITTEN)
        finally:
            potluck(head, "down", file)
        alone = ("--model", MODEL)
        expected = written(head, alone, shown, _WRITTEN)
        expected_long = written(head, alone, prose[:_SECOND_TOKENS], _LONG)
    print(table, words, sep="\n")
    for name, run in (("before", before), ("after", after)):
        layers = run["remote_layers_per_token"]
        print(f"{name} the move: {_step_ms(run):.1f} ms a token, {layers:.2f} remote layers")
    print(f"the run in which experts moved: {long['events']['migrated']} move, {_LONG:,} tokens")
    same = [
        np.array_equal(one["token_ids"], other["token_ids"])
        for one, other in ((before, expected), (after, expected), (long, expected_long))
    ]
    print(f"tokens as one process writes them: {sum(same)} of {len(same)} runs")


if __name__ == "__main__":
    main()
