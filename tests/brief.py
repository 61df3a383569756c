"""How much the planner tries where a test does not judge plans."""

from __future__ import annotations

import pytest

from placement.bounds import memory_prices
from placement.policies.least_time import kicks, policy
from placement.routing import planning_text


def search_briefly(patch: pytest.MonkeyPatch) -> None:
    """Two repetitions instead of eighty, a tenth of the text that is drawn where none was recorded.

    Placements are searched with fewer reads, and prices in fewer rounds: a bound of any prices is one.
    """
    # Where there would be ten or more.
    patch.setattr(kicks, "_WORK", kicks._WORK * 2 // kicks._FEWEST_KICKS)
    patch.setattr(kicks, "_MOST_KICKS", 2)
    patch.setattr(kicks, "_FEWEST_KICKS", 2)
    patch.setattr(planning_text, "_DRAWN_TOKENS", 300)
    patch.setattr(policy, "_READS", 1000)
    patch.setattr(policy, "_TRIAL_READS", 500)
    patch.setattr(policy, "_MOST_CHECK_STEPS", 200)
    patch.setattr(memory_prices, "_SAMPLE_CHOICES", 10_000)
    patch.setattr(memory_prices, "_PRICE_ROUNDS", 5)
    patch.setattr(memory_prices, "_SAMPLE_ROUNDS", 10)
    patch.setattr(memory_prices, "_ROUNDS", 5)
