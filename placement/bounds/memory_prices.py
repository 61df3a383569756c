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

import numpy as np
from numpy.typing import NDArray

from placement.bounds.layer_options import asked_seconds, layer_options, least_expert_seconds
from placement.bounds.price_search import ascend, boxstep
from placement.cost.rates import expert_rates
from placement.given.problem import PlanningProblem
from placement.plan import LOCAL_WORKER

_Floats = NDArray[np.float64]

# Devices whose prices are searched one by one; more are put together with their likes.
_MOST_PRICES = 10
# Numbers (step, layer, expert) of the sample that prices are first found on, and its fewest layers.
_SAMPLE_CHOICES, _FEWEST_LAYERS = 100_000, 4
# Rounds with shares as they are, then rounds in which they move, on the sample and on everything.
_PRICE_ROUNDS, _SAMPLE_ROUNDS, _ROUNDS = 25, 60, 40
_SAMPLE_PACE, _PACE = 0.3, 0.1
# Of the largest price, the least that a price may begin with: from zero none could rise by its share.
_LEAST_PRICE = 1e-3
_PAIRS_AT_ONCE = 1 << 15


def priced_bound_s(problem: PlanningProblem, trace: NDArray[np.integer]) -> float:
    """Seconds of MoE layers below which no placement's mean step on this trace can lie.

    Prices are found on some of the layers first: the layers share nothing but the room. Linear in tokens:
    on two cores about a second and a half for 2,000 tokens of 42 layers and top-8, whatever the number of
    devices.

    Args:
        trace: int [num_tokens, num_moe_layers, top_k], at least one step of the problem's workload.
    """
    tokens = problem.workload.tokens_per_step
    num_steps = len(trace) // tokens
    steps = trace[: num_steps * tokens].reshape(num_steps, tokens, *trace.shape[1:])
    prices = _sample_prices(_Market(problem, _sample(steps)), _first_prices(problem))
    return ascend(_Market(problem, steps), prices, _ROUNDS, _PACE)[0]


def _sample(steps: NDArray[np.integer]) -> NDArray[np.integer]:
    """Some layers, evenly spread, and of long texts some steps.

    Rather few layers than few steps: in fewer steps an expert is easier to fit to what they happen to need,
    and room seems to be worth less.
    """
    num_steps, tokens, num_layers, top_k = steps.shape
    choices = num_steps * tokens * top_k
    wanted = min(max(_FEWEST_LAYERS, _SAMPLE_CHOICES // choices), num_layers)
    layers = ((np.arange(wanted) + 0.5) * num_layers / wanted).astype(np.intp)
    every = max(1, choices * wanted // (2 * _SAMPLE_CHOICES))
    return steps[::every, :, layers]


def _sample_prices(market: _Market, prices: _Floats) -> _Floats:
    shares = market.even_shares()

    def value_of(prices: _Floats) -> tuple[float, _Floats]:
        bound_s, wanted, _ = market.clear(prices, shares)
        return bound_s, wanted - market.room

    prices = boxstep(value_of, prices, _PRICE_ROUNDS)
    prices = np.maximum(prices, _LEAST_PRICE * prices.max())
    return ascend(market, prices, _SAMPLE_ROUNDS, _SAMPLE_PACE)[1]


def _one_expert_s(problem: PlanningProblem) -> _Floats:
    rates = expert_rates(problem)
    return rates.busy_s + asked_seconds(rates) + least_expert_seconds(rates)


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
    own = np.array([device.tier.name == LOCAL_WORKER for device in problem.devices])
    others = np.flatnonzero(~own)
    order = others[np.argsort(one_expert_s[others], kind="stable")]
    # Cut where the sorted times differ most, relative to their size.
    jumps = np.diff(np.log(one_expert_s[order]))
    cuts = np.sort(np.argsort(-jumps, kind="stable")[: _MOST_PRICES - 2])
    classes = np.empty(num_devices, dtype=np.intp)
    classes[order] = np.searchsorted(cuts, np.arange(len(order)), side="left")
    classes[own] = classes[others].max() + 1
    return classes


class _Market:
    """The relaxed problem for given prices and shares."""

    def __init__(self, problem: PlanningProblem, steps: NDArray[np.integer]) -> None:
        """`steps`: int [num_steps, num_tokens, num_layers, top_k]; for some layers part of the room."""
        self._num_experts = steps.shape[2] * problem.shape.num_experts
        classes = _classes(problem)
        part = steps.shape[2] / problem.shape.num_moe_layers
        self.room: _Floats = part * np.bincount(classes, weights=problem.capacities())
        self._num_steps = len(steps)
        # (Step, layer) pairs by how many distinct experts they need: int [num_pairs, num_distinct].
        self._experts = list(_distinct(steps, problem.shape.num_experts))
        self._options = {
            n: layer_options(problem, classes, n) for n in {experts.shape[1] for experts in self._experts}
        }

    def even_shares(self) -> list[_Floats]:
        """Every step that uses an expert pays the same part of its rent: float64, as the experts experts."""
        return self._normalise([np.ones(experts.shape) for experts in self._experts])

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
            choices = self._options[share.shape[1]]
            places = choices.places(prices, share.shape[1])
            place_prices = prices[places]
            # As cells of the whole array, which numpy takes from and puts to several times as fast.
            order = np.argsort(-share, axis=1)
            order += np.arange(0, share.size, share.shape[1])[:, None]
            sorted_share = share.take(order)
            cost = sorted_share @ place_prices.T
            cost *= self._num_steps
            cost += choices.seconds[: len(places)]
            option = cost.argmin(axis=1)
            total_s += float(np.take_along_axis(cost, option[:, None], axis=1).sum())
            price = np.empty(share.shape)
            price.ravel()[order] = place_prices.take(option, axis=0)
            paid.append(price)
            chosen = places.take(option, axis=0)
            wanted += np.bincount(chosen.ravel(), weights=sorted_share.ravel(), minlength=len(prices))
        return total_s / self._num_steps - float(prices @ self.room), wanted, paid

    def move(self, shares: list[_Floats], paid: list[_Floats], rate: float) -> list[_Floats]:
        """Shift each expert's rent to steps whose place costs more; `rate` times price is the exponent."""
        least = min(float(price.min()) for price in paid)
        return self._normalise([s * np.exp(rate * (p - least)) for s, p in zip(shares, paid, strict=True)])

    def _normalise(self, shares: list[_Floats]) -> list[_Floats]:
        """Each expert's shares to a sum of 1."""
        total = np.zeros(self._num_experts)
        for experts, share in zip(self._experts, shares, strict=True):
            total += np.bincount(experts.ravel(), weights=share.ravel(), minlength=self._num_experts)
        return [share / total[experts] for experts, share in zip(self._experts, shares, strict=True)]


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
