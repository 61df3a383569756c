"""A lower bound on a trace from prices: what a place in each device's memory is worth.

Lagrangian relaxation of the integer program of all placements, replicas and free choice among them included.
Memory is let at a price for each place, and an expert passes its rent on to the steps that use it. A step
then pays its time plus the rents of the places it uses, and chooses those freely. Whatever the prices and the
shares of the rents,

    sum over steps of (least time + rents) - sum over devices of price x places

is below the time of every placement that fits: an expert's steps together pay at most the rent of each place
it holds. Good prices and shares make it tight (weak duality; Fisher, Management Science 27, 1981).
docs/bounds.md has the proof.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from placement.cost import ExpertRates, expert_rates
from placement.plan import LOCAL_WORKER
from placement.problem import PlanningProblem

_Floats = NDArray[np.float64]

# Devices whose prices are searched one by one; more are put together with their likes.
_MOST_PRICES = 10
# Of a layer's possible times, all in all and for each number of messages; near ones are put together.
_MOST_OPTIONS, _FEWEST_OPTIONS = 48, 40
_TOLERANCES = 1e-9 * 2.0 ** np.arange(40)
# Numbers (step, layer, expert) of the sample that prices are first found on, and rounds there and on all.
_SAMPLE_CHOICES, _SAMPLE_ROUNDS = 60_000, 100
_ROUNDS = 40
_PAIRS_AT_ONCE = 1 << 15


def priced_bound_s(problem: PlanningProblem, trace: NDArray[np.integer]) -> float:
    """Seconds of MoE layers below which no placement's mean step on this trace can lie.

    Prices are found on a sample of the steps first. Linear in tokens: on two cores about a second for 2,000
    tokens of 42 layers and top-8, whatever the number of devices.

    Args:
        trace: int [num_tokens, num_moe_layers, top_k], at least one step of the problem's workload.
    """
    tokens = problem.workload.tokens_per_step
    num_steps = len(trace) // tokens
    steps = trace[: num_steps * tokens].reshape(num_steps, tokens, *trace.shape[1:])
    sample_steps = max(1, _SAMPLE_CHOICES // steps[0].size)
    prices = _first_prices(problem)
    if num_steps <= sample_steps:
        return _ascend(_Market(problem, steps), prices, _SAMPLE_ROUNDS, pace=0.5)[0]
    sample = steps[np.linspace(0, num_steps - 1, sample_steps).astype(np.intp)]
    _, prices = _ascend(_Market(problem, sample), prices, _SAMPLE_ROUNDS, pace=0.5)
    return _ascend(_Market(problem, steps), prices, _ROUNDS, pace=0.1)[0]


def _ascend(market: _Market, prices: _Floats, rounds: int, pace: float) -> tuple[float, _Floats]:
    """The best bound met while prices and shares follow their subgradients, and the last prices.

    Prices of crowded devices rise and of empty ones fall. Shares move, by exponentiated gradient (Kivinen
    and Warmuth, Information and Computation 132, 1997), to the steps that pay most for the expert.
    """
    best_s = 0.0
    shares = market.even_shares()
    for index in range(rounds):
        bound_s, wanted, paid = market.clear(prices, shares)
        best_s = max(best_s, bound_s)
        excess = wanted / np.maximum(market.room, 1.0) - 1
        if spread := float(prices.max() - prices.min()):
            shares = market.move(shares, paid, 1.5 / (1 + index / 2) / spread)
        prices = prices * np.exp(pace / (1 + index / 10) * np.clip(3 * excess, -1, 1))
    return best_s, prices


def asked_seconds(rates: ExpertRates) -> _Floats:
    """The least that a device which is asked at all costs beside its experts: float64 [num_devices].

    A layer's other rows and messages, and what devices of one machine take from each other, come on top.
    """
    return rates.round_trip_s + rates.row_wire_s + rates.request_s + rates.message_s


def expert_seconds(rates: ExpertRates) -> _Floats:
    """The least a device needs for each distinct expert: it is read, and multiplied at least once."""
    return np.maximum(rates.read_s, rates.compute_s)


def _one_expert_s(problem: PlanningProblem) -> _Floats:
    rates = expert_rates(problem)
    return rates.busy_s + asked_seconds(rates) + expert_seconds(rates)


def _first_prices(problem: PlanningProblem) -> _Floats:
    """Rough: a device's price falls with the time it needs for one expert."""
    classes, one_expert_s = _classes(problem), _one_expert_s(problem)
    quickest = np.array([one_expert_s[classes == index].min() for index in range(classes.max() + 1)])
    slowest_s = float(quickest.max())
    scale = problem.shape.top_k / problem.shape.num_experts
    return scale * (1.01 * slowest_s - quickest)


def _classes(problem: PlanningProblem) -> NDArray[np.intp]:
    """int [num_devices]: devices of one price; the head's own device is alone.

    Putting unlike devices together only loosens the bound.
    """
    num_devices = len(problem.devices)
    if num_devices <= _MOST_PRICES:
        return np.arange(num_devices)
    one_expert_s = _one_expert_s(problem)
    own = np.array([device.worker.name == LOCAL_WORKER for device in problem.devices])
    others = np.flatnonzero(~own)
    order = others[np.argsort(one_expert_s[others], kind="stable")]
    # Cut where the sorted times differ most, relative to their size.
    jumps = np.diff(np.log(one_expert_s[order]))
    cuts = np.sort(np.argsort(-jumps, kind="stable")[: _MOST_PRICES - 2])
    classes = np.empty(num_devices, dtype=np.intp)
    classes[order] = np.searchsorted(cuts, np.arange(len(order)), side="left")
    classes[own] = classes[others].max() + 1
    return classes


@dataclass(frozen=True, slots=True, eq=False)
class _Options:
    """Times a layer may take, ascending, and what can be done by then.

    Attributes:
        seconds: float64 [num_options].
        served: int [num_options, num_classes], experts that devices of a class can finish.
        asked: int [num_options], experts that all devices to which a message must go can finish together.
        by_message: bool [num_classes], those devices.
    """

    seconds: _Floats
    served: NDArray[np.int64]
    asked: NDArray[np.int64]
    by_message: NDArray[np.bool_]

    def places(self, prices: _Floats, num_distinct: int) -> NDArray[np.intp]:
        """int [num_options, num_distinct]: classes of the cheapest places that serve, by price.

        Taking the cheapest first is best, and best at every rank: limits of classes within a limit of
        several are a matroid (Edmonds, Mathematical Programming 1, 1971).
        """
        by_price = np.argsort(prices, kind="stable")
        filled = np.zeros((len(self.seconds), len(prices)), dtype=np.int64)
        left = self.asked.copy()
        for rank, index in enumerate(by_price.tolist()):
            filled[:, rank] = self.served[:, index]
            if self.by_message[index]:
                filled[:, rank] = np.minimum(filled[:, rank], left)
                left -= filled[:, rank]
        filled = np.cumsum(filled, axis=1)
        ranks: NDArray[np.intp] = (np.arange(num_distinct)[None, :, None] >= filled[:, None, :]).sum(axis=2)
        cheapest = ranks.max(axis=1) == 0
        # Nothing cheaper than the cheapest places: a longer time cannot be better.
        last = int(cheapest.argmax()) + 1 if cheapest.any() else len(ranks)
        places: NDArray[np.intp] = by_price[ranks[:last]]
        return places


class _Market:
    """The relaxed problem for given prices and shares."""

    def __init__(self, problem: PlanningProblem, steps: NDArray[np.integer]) -> None:
        """`steps`: int [num_steps, num_tokens, num_moe_layers, top_k]."""
        self._num_experts = problem.shape.num_routed_experts
        classes = _classes(problem)
        self.room: _Floats = np.bincount(classes, weights=problem.capacities()).astype(np.float64)
        self._num_steps = len(steps)
        # (Step, layer) pairs by how many experts they touch: int [num_pairs, num_distinct].
        self._touched = list(_distinct(steps, problem.shape.num_experts))
        self._options = {
            n: _options(problem, classes, n) for n in {touched.shape[1] for touched in self._touched}
        }

    def even_shares(self) -> list[_Floats]:
        """Every step that uses an expert pays the same part of its rent: float64, as the touched experts."""
        return self._scaled([np.ones(touched.shape) for touched in self._touched])

    def clear(self, prices: _Floats, shares: list[_Floats]) -> tuple[float, _Floats, list[_Floats]]:
        """Let every step choose its time and places.

        For a given time the cheapest choice gives the expert of the largest share the cheapest place, and
        so on (rearrangement inequality).

        Returns:
            The bound in seconds; places wanted of each class; the price of the place each expert chose.
        """
        total_s = 0.0
        wanted = np.zeros(len(prices))
        paid = []
        for share in shares:
            options = self._options[share.shape[1]]
            places = options.places(prices, share.shape[1])
            place_prices = prices[places]
            order = np.argsort(-share, axis=1)
            sorted_share = np.take_along_axis(share, order, axis=1)
            cost = sorted_share @ place_prices.T
            cost *= self._num_steps
            cost += options.seconds[: len(places)]
            option = cost.argmin(axis=1)
            total_s += float(np.take_along_axis(cost, option[:, None], axis=1).sum())
            price = np.empty_like(share)
            np.put_along_axis(price, order, place_prices[option], axis=1)
            paid.append(price)
            wanted += np.bincount(places[option].ravel(), weights=sorted_share.ravel(), minlength=len(prices))
        return total_s / self._num_steps - float(prices @ self.room), wanted, paid

    def move(self, shares: list[_Floats], paid: list[_Floats], rate: float) -> list[_Floats]:
        """Shift each expert's rent to steps whose place costs more; `rate` times price is the exponent."""
        least = min(float(price.min()) for price in paid)
        return self._scaled([s * np.exp(rate * (p - least)) for s, p in zip(shares, paid, strict=True)])

    def _scaled(self, shares: list[_Floats]) -> list[_Floats]:
        """Each expert's shares to a sum of 1."""
        total = np.zeros(self._num_experts)
        for touched, share in zip(self._touched, shares, strict=True):
            total += np.bincount(touched.ravel(), weights=share.ravel(), minlength=self._num_experts)
        return [share / total[touched] for touched, share in zip(self._touched, shares, strict=True)]


def _distinct(steps: NDArray[np.integer], num_experts: int) -> Iterator[NDArray[np.intp]]:
    """Experts of (step, layer) pairs, a block of as many different ones at a time: int [pairs, distinct].

    Args:
        steps: int [num_steps, num_tokens, num_moe_layers, top_k].
    """
    num_steps, tokens, num_layers, top_k = steps.shape
    by_layer = steps.astype(np.intp).transpose(0, 2, 1, 3).reshape(num_steps, num_layers, tokens * top_k)
    chosen = (by_layer + np.arange(num_layers)[:, None] * num_experts).reshape(-1, tokens * top_k)
    chosen.sort(axis=1)
    first = np.ones(chosen.shape, dtype=np.bool_)
    np.not_equal(chosen[:, 1:], chosen[:, :-1], out=first[:, 1:])
    counts = first.sum(axis=1)
    for count in np.unique(counts).tolist():
        rows = counts == count
        experts = chosen[rows][first[rows]].reshape(-1, count)
        for start in range(0, len(experts), _PAIRS_AT_ONCE):
            yield experts[start : start + _PAIRS_AT_ONCE]


def _options(problem: PlanningProblem, classes: NDArray[np.intp], num_distinct: int) -> _Options:
    """For every number of messages, the times by which another expert can be finished.

    Near times are put together: the earliest of them, with what can be done by the latest; so are near
    numbers of messages.
    """
    rates = expert_rates(problem)
    message_s = float(rates.message_s.max())
    on_request = rates.message_s > 0
    start_s, expert_s = rates.busy_s + asked_seconds(rates) - rates.message_s, expert_seconds(rates)
    counts = np.minimum(problem.capacities(), num_distinct)
    device = np.repeat(np.arange(len(counts)), counts)
    nth = np.arange(len(device)) - np.repeat(np.cumsum(counts) - counts, counts) + 1
    done_s = np.maximum(start_s[device] + nth * expert_s[device], rates.busy_s.max())
    order = np.argsort(done_s, kind="stable")
    done_s = done_s[order]
    served = np.zeros((len(done_s), len(counts)), dtype=np.int64)
    served[np.arange(len(done_s)), device[order]] = 1
    served = np.cumsum(served, axis=0)
    fastest = np.cumsum(-np.sort(-served[:, on_request], axis=1), axis=1)
    by_class = classes[None, :] == np.arange(classes.max() + 1)[:, None]
    found = []
    for least, most in _message_counts(min(num_distinct, int(on_request.sum()))):
        asked = fastest[:, most - 1] if most else np.zeros(len(done_s), dtype=np.int64)
        each = np.minimum(served @ by_class.T, num_distinct)
        each = np.where((by_class & on_request).any(axis=1), np.minimum(each, asked[:, None]), each)
        enough = np.minimum(served[:, ~on_request].sum(axis=1) + asked, num_distinct) >= num_distinct
        changes = np.append(True, (np.diff(np.column_stack([each, asked]), axis=0) != 0).any(axis=1))
        kept = np.flatnonzero(enough & changes)
        found.append((done_s[kept] + least * message_s, each[kept], asked[kept]))
    return _few(found, (by_class & on_request).any(axis=1))


def _message_counts(most: int) -> list[tuple[int, int]]:
    """Ranges of numbers of messages: 0, 1, 2, 3, 4, then wider."""
    ends = [n for n in (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32) if n < most] + [most]
    return [(end if index == 0 else ends[index - 1] + 1, end) for index, end in enumerate(ends)]


def _few(
    found: list[tuple[_Floats, NDArray[np.int64], NDArray[np.int64]]], by_message: NDArray[np.bool_]
) -> _Options:
    """At most about `_MOST_OPTIONS` of each, sorted by time."""
    kept = []
    for seconds, served, asked in found:
        if not len(seconds):
            continue
        for tolerance in _TOLERANCES:
            starts = np.flatnonzero(np.diff(np.floor(np.log(seconds) / tolerance), prepend=-np.inf))
            if len(starts) <= max(_MOST_OPTIONS // len(found), _FEWEST_OPTIONS):
                break
        ends = np.append(starts[1:], len(seconds)) - 1
        kept.append((seconds[starts], served[ends], asked[ends]))
    seconds, served, asked = (np.concatenate(part) for part in zip(*kept, strict=True))
    order = np.lexsort((-asked, seconds))
    seconds, offers = seconds[order], np.column_stack([served, asked])[order]
    # An option no better than an earlier one is none.
    worse = np.tril((offers[:, None] <= offers[None]).all(axis=2), k=-1).any(axis=1)
    return _Options(seconds[~worse], offers[~worse, :-1], offers[~worse, -1], by_message)
