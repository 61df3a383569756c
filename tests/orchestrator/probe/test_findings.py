"""What looks wrong is said in words, and nothing else is."""

from __future__ import annotations

import pytest

from orchestrator.probe.findings import findings
from tests.placement.given.probes import gpu, link, node, probe


def test_healthy_boxes_give_no_finding() -> None:
    assert findings(probe()) == []


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        ({"swap_bytes": 8_000_000_000, "swap_used_bytes": 2_000_000_000}, "2.0 GB lie in swap"),
        ({"others_share": 0.4}, "other programs took 40% of the cores"),
        ({"clock_share": 0.4, "governor": "powersave"}, "40% of their highest clock under load, governor"),
        ({"governor": "powersave"}, "governor is powersave"),
        ({"gpu_busy_share": 0.9}, "another program keeps the GPU 90% busy"),
    ],
)
def test_a_box_in_bad_condition_is_named(condition: dict[str, object], words: str) -> None:
    (found,) = findings(probe(nodes={"desk": node(condition=condition)}, of_link=link()))
    assert found.startswith("desk: ")
    assert words in found


def test_one_module_of_memory_is_seen_or_guessed() -> None:
    (known,) = findings(probe(nodes={"desk": node(channels=1)}))
    (guessed,) = findings(probe(nodes={"desk": node(cores=8, read_bytes_per_s=12e9)}))
    assert "single channel" in known
    assert "a single module" in guessed
    assert findings(probe(nodes={"desk": node(cores=8, read_bytes_per_s=12e9, channels=2)})) == []


def test_a_card_that_was_not_measured_or_is_held_by_others_is_named() -> None:
    box = node(gpus=(gpu(), gpu("cuda:1")))
    assert findings(probe(nodes={"desk": box})) == []
    (missing,) = findings(probe(nodes={"desk": box.model_copy(update={"gpus": (gpu(),)})}))
    assert missing.startswith("desk: 1 of its cards (a card) were not measured")
    (held,) = findings(probe(nodes={"desk": node(gpus=(gpu(free_bytes=12_000_000_000),))}))
    assert "other programs hold 12.0 GB of its memory" in held


def test_a_link_that_jitters_is_named_with_its_wireless_interface() -> None:
    boxes = {"desk": node(), "attic": node(condition={"wireless": ("wlan0",)})}
    (found,) = findings(probe(nodes=boxes, of_link=link(p50_s=2e-3, p99_s=3e-2)))
    assert found.startswith("link to attic: ")
    assert "wlan0" in found
    assert findings(probe(of_link=link(p50_s=2e-3, p99_s=4e-3))) == []
