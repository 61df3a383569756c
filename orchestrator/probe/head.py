"""What the head's software takes on the box this runs on: `python -m orchestrator.probe.head`.

Passes of a narrow model, and the dispatcher's work for one echo of this box. It writes "ready" when it has
started, reads a line of JSON with `seconds` and `threads`, and answers with `HeadTimes`.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from statistics import median

from orchestrator.probe.attention import attention_flops_per_s  # loads torch as our kernels want it

# isort: split
import numpy as np
import torch
from numpy.typing import NDArray

from orchestrator.model.attention import SequenceSlice
from orchestrator.model.mtp import DraftRequest, MtpDrafter
from orchestrator.probe.dispatching import dispatching
from orchestrator.probe.head_times import (
    ATTENTION_ROWS,
    CHUNK_ROWS,
    CONTEXT,
    READY,
    VERIFY_ROWS,
    HeadTimes,
)
from orchestrator.probe.narrow_model import NoExperts, narrow_model
from orchestrator.probe.narrow_shape import MTP_LAYERS, narrow_config
from orchestrator.sampling import Choice, Sampler
from orchestrator.sampling_params import SamplingParams
from placement.errors import PotluckError
from transport.expert_rows import ExpertRows
from workers.probe.clocks import ASLEEP_S
from workers.probe.echo import TOP_K
from workers.probe.experts import probe_rows
from workers.probe.time_left import TimeLeft

_ATTENTION_CONTEXT = 1024
_SHORTEST_TURNS = 6
_ATTENTION_HEADS, _ATTENTION_KV_HEADS, _ATTENTION_HEAD_DIM = 64, 8, 128
"""Of Step-3.5-Flash's attention."""


Dispatch = Callable[[ExpertRows], None]


def head_times(seconds: float, dispatch: Dispatch) -> HeadTimes:
    """Measure now, with the threads in use, for about so long.

    Args:
        dispatch: of `dispatching`.
    """
    left = TimeLeft(seconds, {"passes": 0.5, "dispatch": 0.3, "attention": 0.2})
    token_s, woken_token_s, verify_s, chunk_s, logits_s, drafts_s = _passes(left.next("passes"))
    nobody_s, nobody_rows_s, asked_s, asked_rows_s = _dispatch(dispatch, left.next("dispatch"))
    dispatch_row_s = max(0.0, nobody_rows_s - nobody_s) / (CHUNK_ROWS - 1)
    more_s = (asked_rows_s - asked_s) / (CHUNK_ROWS - 1)
    return HeadTimes(
        token_s=token_s,
        verify_s=verify_s,
        chunk_s=chunk_s,
        woken_token_s=woken_token_s,
        logits_s=logits_s,
        drafts_s=drafts_s,
        dispatch_s=nobody_s,
        message_s=max(0.0, asked_s - nobody_s),
        dispatch_row_s=dispatch_row_s,
        message_row_s=max(0.0, more_s - dispatch_row_s),
        attention_flops_per_s=_attention(left.next("attention")),
    )


def _passes(seconds: float) -> tuple[float, ...]:
    until, turn = time.perf_counter() + seconds, 0
    experts = NoExperts()
    head = narrow_model(experts)
    cache = head.new_cache()
    prompt = torch.arange(CONTEXT)
    hidden = head.forward(prompt, [SequenceSlice(cache, CONTEXT)])
    drafter = MtpDrafter(head, MTP_LAYERS)
    state, tokens, sampler = drafter.new_state(), [*prompt.tolist(), 1], Sampler(SamplingParams())

    def choice(drafts: list[int]) -> Choice:
        return sampler.choice(len(tokens) + len(drafts), drafts)

    def choose() -> None:
        head.logits_to_choose_from(hidden[-1:]).choose([choice([])])

    drafter.draft([DraftRequest(state, hidden, tokens, MTP_LAYERS, choice)])
    token, woken, verify, chunk, logits, drafts = [list[float]() for _ in range(6)]
    while turn < _SHORTEST_TURNS or time.perf_counter() < until:
        turn += 1
        row = prompt[turn % CONTEXT].reshape(1)
        for found, experts.asleep_s in ((token, 0.0), (woken, ASLEEP_S)):
            found.append(experts.timed(partial(head.forward, row, [SequenceSlice(cache, 1)])))
            cache.rollback(CONTEXT)
        experts.asleep_s = 0.0
        rows = [SequenceSlice(cache, VERIFY_ROWS)]
        verify.append(experts.timed(partial(head.forward, prompt[:VERIFY_ROWS], rows)))
        cache.rollback(CONTEXT)
        logits.append(experts.timed(choose))
        tokens.append(turn)
        request = DraftRequest(state, hidden[-1:], tokens, MTP_LAYERS, choice)
        drafts.append(experts.timed(partial(drafter.draft, [request])))
        if turn % 2:
            fresh = [SequenceSlice(head.new_cache(), CHUNK_ROWS)]
            chunk.append(experts.timed(partial(head.forward, prompt[:CHUNK_ROWS], fresh)))
    return tuple(median(times) for times in (token, woken, verify, chunk, logits, drafts))


def _dispatch(run: Dispatch, seconds: float) -> tuple[float, float, float, float]:
    """CPU seconds of this thread in a layer: one row and many that ask nobody, and that ask a worker."""
    nobody = np.full((CHUNK_ROWS, TOP_K), -1, np.int32)
    somebody = np.tile(np.arange(TOP_K, dtype=np.int32), (CHUNK_ROWS, 1))
    alone_s, rows_s = (_cpu_s(run, ids, seconds / 4, 0.0) for ids in (nobody[:1], nobody))
    asked_s, asked_rows_s = (_cpu_s(run, ids, seconds / 4, ASLEEP_S) for ids in (somebody[:1], somebody))
    return alone_s, rows_s, asked_s, asked_rows_s


def _cpu_s(run: Dispatch, ids: NDArray[np.int32], seconds: float, asleep_s: float) -> float:
    rows = probe_rows(ids)
    cold = torch.ones(4 << 20)
    times: list[float] = []
    until = time.perf_counter() + seconds
    while len(times) < _SHORTEST_TURNS or time.perf_counter() < until:
        cold.sum()
        time.sleep(asleep_s)
        started = time.thread_time()
        run(rows)
        times.append(time.thread_time() - started)
    return median(times[1:])


def _attention(seconds: float) -> tuple[float, ...]:
    layer = replace(
        narrow_config().layers[0],
        num_heads=_ATTENTION_HEADS,
        num_kv_heads=_ATTENTION_KV_HEADS,
        head_dim=_ATTENTION_HEAD_DIM,
    )
    return attention_flops_per_s(layer, ATTENTION_ROWS, _ATTENTION_CONTEXT, seconds)


def main() -> int:
    try:
        with tempfile.TemporaryDirectory() as sockets, dispatching(f"ipc://{sockets}/echo.sock") as dispatch:
            print(json.dumps(READY), flush=True)
            line = sys.stdin.readline()
            if not line:
                return 0
            asked = json.loads(line)
            torch.set_num_threads(int(asked["threads"]))
            found = head_times(float(asked["seconds"]), dispatch)
    except PotluckError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(found.model_dump_json(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
