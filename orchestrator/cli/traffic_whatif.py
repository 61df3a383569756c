"""What if these boxes were more, judged on what their server was asked of late."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from placement.errors import PotluckError
from placement.given.probe import HERE, probe_path, probe_path_here
from placement.given.trace_writer import write_trace
from placement.model_shape import ModelShape

_LEAST_TOKENS = 512
"""Of fewer nothing can be said; synthetic text then stands for them."""
_MOST_S = 900


def rank_on_traffic(
    cluster: Path | None, model: Path, shape: ModelShape, recent: NDArray[np.uint16]
) -> dict[str, Any]:
    """The document of `potluck whatif --json`; it takes seconds to minutes of a core, at low priority.

    Args:
        cluster: its file; None for this machine alone, as `potluck probe` measured it in this folder.
        recent: experts of the newest tokens, uint16 [num_tokens, num_moe_layers, top_k].

    Raises:
        PotluckError: the planner cannot answer, and says why.
    """
    with TemporaryDirectory() as folder:
        if cluster is None:
            cluster = _this_machine(Path(folder))
        # A process of its own: the planner would hold up the thread that runs the model.
        words = [sys.executable, "-m", "orchestrator.cli.main", "whatif", str(cluster), "--model", str(model)]
        if len(recent) >= _LEAST_TOKENS:
            trace = Path(folder) / "traffic.npz"
            write_trace(trace, shape, [recent], len(recent), "a server's newest tokens")
            words += ["--stats", str(trace)]
        try:
            done = subprocess.run(
                ["nice", *words, "--json"], capture_output=True, text=True, timeout=_MOST_S, env=_one_core()
            )
        except subprocess.TimeoutExpired:
            raise PotluckError(f"ranking changes takes longer than {_MOST_S} s") from None
    if done.returncode:
        told = done.stderr.strip().splitlines()
        raise PotluckError(told[-1].removeprefix("error: ") if told else "ranking changes failed")
    found: dict[str, Any] = json.loads(done.stdout)
    return found | {"tokens": len(recent) if len(recent) >= _LEAST_TOKENS else 0}


def _this_machine(folder: Path) -> Path:
    """A cluster file of this machine alone, beside its figures."""
    cluster = folder / f"{HERE}.yaml"
    cluster.write_text(f"head: {HERE}\nnodes:\n- name: {HERE}\n", encoding="utf-8")
    figures = probe_path(cluster)
    figures.parent.mkdir(parents=True)
    figures.write_bytes(probe_path_here().read_bytes())
    return cluster


def _one_core() -> dict[str, str]:
    return dict(os.environ) | {"OMP_NUM_THREADS": "1"}
