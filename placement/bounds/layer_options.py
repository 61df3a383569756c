"""Times that one MoE layer may take, and how many experts each device can have finished by then.

Everything here leaves work out and never adds any, so that `memory_prices` stays a lower bound.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from placement.cost.rates import expert_rates
from placement.cost.roofline import ExpertRates, roofline_seconds
from placement.given.problem import PlanningProblem

_Floats = NDArray[np.float64]

# Of a layer's possible times, all in all and for each number of messages; near ones are put together.
_MOST_OPTIONS, _FEWEST_OPTIONS = 100, 40
_TOLERANCES = 1e-9 * 2.0 ** np.arange(40)


def asked_seconds(rates: ExpertRates) -> _Floats:
    """The least that a device which is asked at all costs beside its experts: float64 [num_devices].

    A layer's other rows and messages, and what devices of one machine take from each other, come on top.
    """
    return rates.round_trip_s + rates.row_wire_s + rates.request_s + message_seconds(rates)


def message_seconds(rates: ExpertRates) -> _Floats:
    """The head's software for a request of one row: float64 [num_devices]."""
    return rates.message_s + rates.message_row_s


def least_expert_seconds(rates: ExpertRates) -> _Floats:
    """The least a device needs for each distinct expert: it is read, and multiplied at least once."""
    return roofline_seconds(rates, 1, 1)


@dataclass(frozen=True, slots=True, eq=False)
class LayerOptions:
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


def layer_options(problem: PlanningProblem, classes: NDArray[np.intp], num_distinct: int) -> LayerOptions:
    """For every number of messages, the times by which another expert can be finished.

    Near times are put together: the earliest of them, with what can be done by the latest; so are near
    numbers of messages.
    """
    rates = expert_rates(problem)
    # The devices of a box share its message. So it is counted among the messages only where a box has one
    # device; elsewhere each device waits for it.
    alone = np.bincount(rates.box)[rates.box] == 1
    each_message_s = message_seconds(rates) * alone
    message_s = float(each_message_s.max())
    on_request = each_message_s > 0
    start_s, expert_s = rates.busy_s + asked_seconds(rates) - each_message_s, least_expert_seconds(rates)
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
) -> LayerOptions:
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
    return LayerOptions(seconds[~worse], offers[~worse, :-1], offers[~worse, -1], by_message)
