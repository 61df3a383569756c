"""Boxes are done side by side; what a user should see of one keeps none of the others."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import pytest

from orchestrator.each_box import each_box
from placement.errors import BoxUnreachable


@dataclass(frozen=True)
class Box:
    name: str


BOXES = [Box("den"), Box("attic"), Box("cellar")]


def test_results_and_errors_come_in_the_order_of_the_boxes() -> None:
    together = threading.Barrier(len(BOXES), timeout=60.0)

    def ask(box: Box) -> str:
        together.wait()
        if box.name == "attic":
            raise BoxUnreachable("attic: off")
        return box.name.upper()

    done, failed = each_box(BOXES, ask)
    assert list(done.items()) == [("den", "DEN"), ("cellar", "CELLAR")]
    assert {name: str(error) for name, error in failed.items()} == {"attic": "attic: off"}


def test_a_mistake_of_ours_is_not_taken_for_a_box_that_fails() -> None:
    def ask(box: Box) -> str:
        raise KeyError(box.name)

    with pytest.raises(KeyError):
        each_box(BOXES, ask, at_once=1)
    assert each_box([], ask) == ({}, {})
