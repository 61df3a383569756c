"""The file of ranges, and what is wrong with others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from placement.errors import HardwareFileError
from placement.hardware.spread import SPREADS, Range, packaged_spreads, read_spreads

ONE: dict[str, Any] = {"low": 0.8, "high": 1.1, "count": 9, "covers": 0.8, "source": "somebody"}
ALL = dict.fromkeys(("judged", "probed", "same_boxes"), ONE)


def written(folder: Path, document: object) -> Path:
    path = folder / "spread.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def test_each_range_is_read(tmp_path: Path) -> None:
    found = read_spreads(written(tmp_path, ALL | {"probed": ONE | {"low": 0.9}}))
    assert found.judged == found.same_boxes == Range(0.8, 1.1, 9, 0.8)
    assert found.probed == Range(0.9, 1.1, 9, 0.8)
    assert packaged_spreads() == read_spreads(SPREADS)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (ALL | {"others": ONE}, "others: unknown key"),
        ({key: ALL[key] for key in ("judged", "probed")}, "same_boxes"),
        (ALL | {"judged": ONE | {"low": 1.2}}, "judged: .*expected low at most high"),
        (ALL | {"judged": ONE | {"low": 0}}, "judged.low"),
        (ALL | {"judged": ONE | {"count": 0}}, "judged.count"),
        (ALL | {"probed": ONE | {"covers": 1.5}}, "probed.covers"),
        (ALL | {"probed": ONE | {"middle": 1.0}}, "probed.middle: unknown key"),
    ],
)
def test_a_wrong_file_is_told(tmp_path: Path, document: object, message: str) -> None:
    with pytest.raises(HardwareFileError, match=f"spread.yaml: .*{message}"):
        read_spreads(written(tmp_path, document))
