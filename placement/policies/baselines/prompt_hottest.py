"""What KTransformers calls dynamic: the fast memory holds what each prompt's own prefill used most."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from placement.assign.replica_columns import Choices
from placement.errors import InputError
from placement.given.problem import PlanningProblem
from placement.given.stats import count_experts
from placement.policies.baselines.cached_experts import expert_requests, fast_device, homes_beside
from placement.replay.evaluate import Evaluation, evaluate_choices
from placement.routing.text import Text


def prompt_hottest(problem: PlanningProblem, text: Text) -> Evaluation:
    """Each document's first half is its prompt, its second half the answer that is judged.

    Every expert has a home beside the fastest device, as for a cache, and is computed there unless the fast
    device holds it: the experts of all layers that the prompt chose most, ties to the statistics' hotter
    ones. Loading them is not charged: KTransformers streams all experts through the GPU during prefill and
    keeps those. Sequences that run together share the fast memory, as their prompts together say.

    Raises:
        InputError: no document is long enough for a prompt and one step.
    """
    fast = fast_device(problem)
    homes = homes_beside(problem, fast).table[:, :, 0]
    capacity = int(problem.capacities()[fast])
    tokens = problem.workload.tokens_per_step
    parts, masks, lengths = [], [], []
    for prompt, answer in _documents(text, problem.workload.num_sequences, tokens):
        parts.append(answer)
        lengths.append(len(answer) // tokens)
        masks.append(_hottest(problem, prompt, capacity))
    if not parts:
        raise InputError(
            f"prompt-hottest: expected documents with a prompt and a step of {tokens} tokens, found "
            f"{len(text.trace)} tokens in documents of {text.document_tokens}"
        )
    in_fast = np.stack(masks)
    of_devices = np.min_scalar_type(len(problem.devices))
    document = np.repeat(np.arange(len(parts)), lengths)
    trace = np.concatenate(parts)

    def choose(layers: slice, first_step: int, expert_ids: NDArray[np.integer]) -> Choices:
        of = document[first_step : first_step + expert_ids.shape[-1]]
        rows = np.arange(layers.start, layers.stop)[:, None]
        hit = in_fast[of, rows, expert_ids]
        return Choices(np.where(hit, fast, homes[rows, expert_ids]).astype(of_devices))

    requests = expert_requests(problem, trace)
    hits = in_fast.reshape(len(parts), -1)[document[:, None, None], requests] & (requests >= 0)
    evaluation = evaluate_choices(problem, choose, trace)
    return replace(evaluation, hit_share=float(hits.sum() / (requests >= 0).sum()))


def _documents(
    text: Text, num_sequences: int, tokens_per_step: int
) -> Iterator[tuple[NDArray[np.integer], NDArray[np.integer]]]:
    """Prompt and answer of each document, of all sequences together; an answer is a whole number of steps."""
    length = text.document_tokens * num_sequences
    for start in range(0, len(text.trace), length):
        document = text.trace[start : start + length]
        # The prompt, too, ends with a pass: passes of several sequences lie side by side in the trace.
        prompt = len(document) // 2 // tokens_per_step * tokens_per_step
        answer = (len(document) - prompt) // tokens_per_step * tokens_per_step
        if prompt and answer:
            yield document[:prompt], document[prompt : prompt + answer]


def _hottest(problem: PlanningProblem, prompt: NDArray[np.integer], capacity: int) -> NDArray[np.bool_]:
    """bool [num_moe_layers, num_experts]: what the fast memory holds during the answer."""
    counts = count_experts(prompt, problem.shape.num_experts).ravel()
    tie = problem.stats.counts.ravel() if problem.stats else np.zeros(len(counts))
    held = np.zeros(len(counts), dtype=np.bool_)
    held[np.lexsort((-tie.astype(np.float64), -counts.astype(np.float64)))[:capacity]] = True
    return held.reshape(-1, problem.shape.num_experts)
