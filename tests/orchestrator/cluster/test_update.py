"""What may be installed on all boxes."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.cluster.update import check_wheel
from placement.errors import InputError


def test_a_wheel_says_its_version(tmp_path: Path) -> None:
    wheel = tmp_path / "potluck_moe-0.2.1-cp311-cp311-linux_x86_64.whl"
    wheel.touch()
    assert check_wheel(wheel) == "0.2.1"


@pytest.mark.parametrize("name", ["other-1.0-py3-none-any.whl", "potluck_moe-0.2.1.tar.gz"])
def test_anything_else_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    with pytest.raises(InputError, match="expected a wheel of Potluck, which `make wheel` puts into dist/"):
        check_wheel(tmp_path / name)


def test_a_wheel_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a wheel"):
        check_wheel(tmp_path / "potluck_moe-0.2.1-cp311-cp311-linux_x86_64.whl")
