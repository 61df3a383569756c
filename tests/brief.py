"""How much the planner tries where a test does not judge plans."""

from __future__ import annotations

import pytest

from placement.policies.least_time import kicks
from placement.routing import planning_text


def search_briefly(patch: pytest.MonkeyPatch) -> None:
    """Ten repetitions instead of eighty, a tenth of the text that is drawn where none was recorded."""
    patch.setattr(kicks, "_MOST_KICKS", kicks._FEWEST_KICKS)
    patch.setattr(planning_text, "_DRAWN_TOKENS", 300)
