"""Policies that cache experts in the fastest memory at home, over slower memory of the same box.

Every expert has a home: the other devices, filled as `hottest_first` fills them. The fastest device at home
is the cache of those whose home is in the head's box: one pool of places for all layers. It computes them;
what it does not hold it fetches when a layer asks for it. Experts on other boxes are computed there and
never fetched: a network brings an expert hundreds of times more slowly than a question and its answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from placement.assign.replica_columns import Choices
from placement.cost.rates import expert_rates
from placement.errors import PlanDoesNotFit
from placement.given.problem import PlanningProblem
from placement.holders import HolderTable
from placement.policies.baselines import caches
from placement.policies.baselines.fixed import by_speed, fill, hottest, layer_order
from placement.replay.evaluate import Evaluation, evaluate_choices
from placement.routing.text import Text
from placement.units import size

Hits = Callable[[NDArray[np.integer], int, list[int]], NDArray[np.bool_]]
"""From requests, capacity and first contents to hits; see placement/policies/baselines/caches.py."""


def lru(problem: PlanningProblem, text: Text) -> Evaluation:
    """The least recently used expert makes room; begins with the hottest of the statistics."""
    return _run_with_cache(problem, text, caches.lru_hits)


def lfu(problem: PlanningProblem, text: Text) -> Evaluation:
    """The least often used expert makes room, uses counted on from those of the statistics."""
    before = problem.stats.counts.ravel().tolist() if problem.stats else []

    def hits_of(requests: NDArray[np.integer], capacity: int, first: list[int]) -> NDArray[np.bool_]:
        return caches.lfu_hits(requests, capacity, first, before)

    return _run_with_cache(problem, text, hits_of)


def opt(problem: PlanningProblem, text: Text) -> Evaluation:
    """Belady's rule, which knows the text to come: no cache of this size has more hits."""
    return _run_with_cache(problem, text, lambda requests, capacity, _: caches.opt_hits(requests, capacity))


def fast_device(problem: PlanningProblem) -> int:
    """The device at home whose memory is a cache: the fastest for one expert, disks left out."""
    return by_speed(problem)[0]


def homes_beside(problem: PlanningProblem, fast: int) -> HolderTable:
    """Every expert on some other device than `fast`: hottest first, or layer by layer without statistics.

    Raises:
        PlanDoesNotFit: the other devices are too small for all experts.
    """
    others = [device for device in by_speed(problem) if device != fast]
    missing = problem.shape.num_routed_experts - int(problem.capacities()[others].sum())
    if missing > 0:
        raise PlanDoesNotFit(
            f"a cache on {problem.devices[fast].tier.name!r}: all experts need a home on the other "
            f"devices, where {size(missing * problem.expert_bytes)} are missing"
        )
    return fill(problem, others, hottest(problem) if problem.stats else layer_order(problem))


def fetch_seconds(problem: PlanningProblem, fast: int) -> NDArray[np.float64]:
    """Seconds to bring one expert from each device to `fast`, float64 [num_devices], without a round trip.

    The slowest of the memory it lies in, the link to it, and the host link of `fast` where the cluster gives
    one.
    """
    host_link = problem.devices[fast].host_link_bytes_per_s or np.inf
    rates = [
        min(device.bandwidth_bytes_per_s, device.link_bytes_per_s, host_link) for device in problem.devices
    ]
    return problem.expert_bytes / np.array(rates)


def expert_requests(problem: PlanningProblem, trace: NDArray[np.integer]) -> NDArray[np.int32]:
    """What each layer of each step asks for: int32 [num_steps, num_moe_layers, tokens_per_step * top_k].

    Experts are numbered layer by layer; -1 where a step's tokens share one.
    """
    tokens = problem.workload.tokens_per_step
    num_steps = len(trace) // tokens
    _, num_layers, top_k = trace.shape
    steps = trace[: num_steps * tokens].reshape(num_steps, tokens, num_layers, top_k)
    asked = steps.transpose(0, 2, 1, 3).reshape(num_steps, num_layers, -1).astype(np.int32)
    asked.sort(axis=2)
    repeats = asked[:, :, 1:] == asked[:, :, :-1]
    asked += (np.arange(num_layers, dtype=np.int32) * problem.shape.num_experts)[:, None]
    asked[:, :, 1:][repeats] = -1
    return asked


def _run_with_cache(problem: PlanningProblem, text: Text, hits_of: Hits) -> Evaluation:
    fast = fast_device(problem)
    homes = homes_beside(problem, fast).table[:, :, 0]
    is_home = np.array([device.is_home for device in problem.devices])
    if not is_home[homes].any():
        raise PlanDoesNotFit(
            f"a cache on {problem.devices[fast].tier.name!r}: the head's box has no other memory to cache"
        )
    cacheable = is_home[homes.ravel()]
    capacity = int(problem.capacities()[fast])
    first = [e for e in hottest(problem).tolist() if cacheable[e]][:capacity] if problem.stats else []
    requests = expert_requests(problem, text.trace)
    flat = requests.reshape(-1, requests.shape[2])
    cached = np.where((flat >= 0) & cacheable.take(flat), flat, -1)
    hits = hits_of(cached, capacity, first)
    missed = (~hits & (cached >= 0)).reshape(requests.shape)
    arrivals = _Arrivals(problem, fast, requests, missed, homes.ravel())
    computed_at = np.where(is_home[homes], np.int16(fast), homes).astype(np.min_scalar_type(len(is_home)))

    def choose(layers: slice, _first_step: int, expert_ids: NDArray[np.integer]) -> Choices:
        rows = np.arange(layers.start, layers.stop)[:, None]
        return Choices(computed_at[rows, expert_ids])

    evaluation = evaluate_choices(problem, choose, text.trace, arrivals)
    return replace(evaluation, hit_share=float(hits.sum() / (requests >= 0).sum()))


class _Arrivals:
    """When a layer could be done as far as fetched experts go."""

    def __init__(
        self,
        problem: PlanningProblem,
        fast: int,
        requests: NDArray[np.int32],
        missed: NDArray[np.bool_],
        homes: NDArray[np.int16],
    ) -> None:
        self._sources = np.where(missed, homes.take(requests), np.int16(-1))
        self._expert_s = fetch_seconds(problem, fast)
        self._round_trip_s = np.array([device.round_trip_s for device in problem.devices])
        self._last_s = float(expert_rates(problem).read_s[fast])

    def __call__(self, row: int, steps: slice) -> NDArray[np.float64]:
        """float64 [num_steps, num_devices]: a source's experts come one after another, then the last is
        computed; sources do not wait for each other, nor the cached experts for any of them."""
        sources = self._sources[steps, row]
        fetched = np.stack([(sources == d).sum(axis=1) for d in range(len(self._expert_s))], axis=1)
        seconds = self._round_trip_s + fetched * self._expert_s + self._last_s
        return np.where(fetched > 0, seconds, 0.0)
