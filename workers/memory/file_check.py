"""Whether a model's files are still those that a run began with."""

from __future__ import annotations

import time

from workers.formats.checkpoint import Checkpoint

CHECK_FILES_S = 1.0


class FileCheck:
    """Sees now and then that a model's files are still those that were mapped.

    Reading a page that a file lost ends the process. Seen in time, a cut file ends one request only.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._next_s = time.monotonic() + CHECK_FILES_S

    def __call__(self) -> None:
        """Look, unless that was done a moment ago; raises ModelFilesFailed for a changed file."""
        if time.monotonic() >= self._next_s:
            self._checkpoint.check_unchanged()
            self._next_s = time.monotonic() + CHECK_FILES_S
