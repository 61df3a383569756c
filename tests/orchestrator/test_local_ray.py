"""What surrounds Ray: signals while stopping, and the settings that are put back."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path

import pytest
import ray

from orchestrator.local_ray import MAX_TEMP_DIR_CHARS, local_ray, uninterrupted

INTERRUPTS = (signal.SIGINT, signal.SIGTERM)


def test_nothing_interrupts_the_stopping_and_handlers_come_back() -> None:
    before = [signal.getsignal(number) for number in INTERRUPTS]
    with uninterrupted():
        for number in INTERRUPTS:
            os.kill(os.getpid(), number)
    assert [signal.getsignal(number) for number in INTERRUPTS] == before


@pytest.mark.slow
def test_ray_leaves_environment_signals_and_files_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, deep = tmp_path / "home", tmp_path / ("deep" * MAX_TEMP_DIR_CHARS)
    home.mkdir()
    deep.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    environment, handlers = dict(os.environ), [signal.getsignal(number) for number in INTERRUPTS]
    with local_ray() as directory:
        assert ray.is_initialized()
        # Ray's sockets would not fit below a long TMPDIR.
        assert len(str(directory.parent)) <= MAX_TEMP_DIR_CHARS
        assert os.environ["RAY_AUTH_MODE"] == "token"
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        with local_ray() as second:
            assert second != directory
        assert ray.is_initialized()
    assert not ray.is_initialized()
    assert not directory.exists()
    assert dict(os.environ) == environment
    assert [signal.getsignal(number) for number in INTERRUPTS] == handlers
    assert list(home.iterdir()) == []
