"""What the head takes without experts: its passes, its dispatcher and what that does for each message."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import torch

from benchmarks.fidelity.bench import SLOW_SHARE, Bench
from benchmarks.fidelity.clocks import mean, timed
from benchmarks.fidelity.figures import HeadProbe
from benchmarks.fidelity.rows import CHUNK_ROWS, chunk_ids, hidden_rows
from orchestrator import kernels
from orchestrator.kernels import PassRows, SequenceRows
from orchestrator.model.attention import SequenceSlice
from orchestrator.model.kv_cache import KVCache
from orchestrator.model.mtp import DraftRequest, MtpDrafter
from orchestrator.sampling import Choice, Sampler
from orchestrator.sampling_params import SamplingParams


def probe_head(bench: Bench) -> HeadProbe:
    head, context = bench.head, bench.context
    cache = head.new_cache()
    prompt = torch.arange(context) % head.config.vocab_size
    hidden = head.forward(prompt, [SequenceSlice(cache, context)])
    drafter = MtpDrafter(head, len(head.weights.mtp))
    state, tokens = drafter.new_state(), [*prompt.tolist(), 1]
    sampler = Sampler(SamplingParams())

    def choice(drafts: list[int]) -> Choice:
        return sampler.choice(len(tokens) + len(drafts), drafts)

    def choose() -> None:
        head.logits_to_choose_from(hidden[-1:]).choose([choice([])])

    drafter.draft([DraftRequest(state, hidden, tokens, drafter.num_layers, choice)])

    cached = head.new_cache()
    cached.begin(context + CHUNK_ROWS)
    token, verify, chunk, logits, drafts, attention = [], [], [], [], [], []
    verify_rows = 1 + drafter.num_layers
    for turn in range(bench.repeats):
        row = torch.tensor([turn])
        token.append(bench.experts.timed(lambda: head.forward(row, [SequenceSlice(cache, 1)])))  # noqa: B023
        cache.rollback(context)
        rows, together = prompt[:verify_rows], [SequenceSlice(cache, verify_rows)]
        verify.append(bench.experts.timed(lambda: head.forward(rows, together)))  # noqa: B023
        cache.rollback(context)
        logits.append(timed(choose))
        tokens.append(turn)
        request = DraftRequest(state, hidden[-1:], tokens, drafter.num_layers, choice)
        drafts.append(timed(lambda: drafter.draft([request])))  # noqa: B023
        if turn % SLOW_SHARE == 0:
            fresh = [SequenceSlice(head.new_cache(), CHUNK_ROWS)]
            chunk.append(bench.experts.timed(lambda: head.forward(prompt[:CHUNK_ROWS], fresh)))  # noqa: B023
            attention.append(timed(lambda: _attention(bench, cached)))
    workers = bench.workers
    nobody_s, all_s = bench.dispatch_cpu_s(()), bench.dispatch_cpu_s(workers)
    rows_s = bench.dispatch_cpu_s((), CHUNK_ROWS)
    message_s = max(0.0, all_s - nobody_s) / len(workers) if workers else 0.0
    return HeadProbe(
        context=context,
        verify_rows=verify_rows,
        chunk_rows=CHUNK_ROWS,
        token_s=mean(token),
        verify_s=mean(verify),
        chunk_s=mean(chunk),
        logits_s=mean(logits),
        drafts_s=mean(drafts),
        attention_s=mean(attention),
        dispatch_s=nobody_s,
        dispatch_row_s=max(0.0, rows_s - nobody_s) / (CHUNK_ROWS - 1),
        message_s=message_s,
        message_row_s=_message_row_s(bench, rows_s, message_s) if workers else 0.0,
    )


def _attention(bench: Bench, cache: KVCache) -> None:
    full = replace(bench.head.weights.layers[0].attention.heads, window=0, has_gate=False)
    rows = PassRows(cache.shapes, [SequenceRows(cache.tables, bench.context, CHUNK_ROWS)])
    kernels.attention(torch.ones(CHUNK_ROWS, full.width), full, bench.head.rotation(0, rows.stop), rows, 0)


def _message_row_s(bench: Bench, rows_s: float, message_s: float) -> float:
    """CPU seconds of this thread for each row it sends to a worker, of a chunk that asks all of them."""
    found, sent = [], 0
    for turn in range(bench.slow_turns):
        held = [bench.held(worker, turn)[1] for worker in bench.workers]
        ids = chunk_ids(bench.shape, sum(held, ()), turn)
        sent += sum(int(np.isin(ids, experts).any(axis=1).sum()) for experts in held)
        hidden = hidden_rows(bench.shape, len(ids), turn)
        started = time.thread_time()
        bench.run(bench.layer(turn), ids, hidden)
        found.append(time.thread_time() - started)
    extra_s = mean(found) - rows_s - len(bench.workers) * message_s
    return max(0.0, extra_s) * len(found) / sent
