"""A GGUF file's bytes in memory as views, mapped when they are first asked for."""

from __future__ import annotations

import mmap
import warnings

import numpy as np
import torch
from torch import Tensor

from placement.errors import CheckpointError, ModelFilesFailed
from placement.files.gguf_file import GgufFile
from placement.files.input_file import open_input


class MappedFile:
    """One file; a view of it keeps it mapped."""

    def __init__(self, file: GgufFile) -> None:
        self.file = file
        self._bytes: Tensor | None = None
        self._in_use = False

    def view(self, start: int, num_bytes: int) -> Tensor:
        """uint8 [num_bytes], which nobody may write to.

        Raises:
            ModelFilesFailed: the file is not the one any more whose header was read.
            CheckpointError: it cannot be opened or mapped.
        """
        # Another thread may release the file meanwhile.
        mapped = self._bytes
        if mapped is None:
            mapped = self._bytes = self._map()
        return mapped[start : start + num_bytes]

    def check_unchanged(self) -> None:
        """Raises ModelFilesFailed where a file that was mapped is another now, or was written to."""
        if self._in_use:
            self.file.identity.check(self.file.path, self.file.path, ModelFilesFailed)

    def release(self) -> None:
        """Let go; the file stays mapped while there are views."""
        self._bytes = None

    def _map(self) -> Tensor:
        with open_input(self.file.path, CheckpointError, "a GGUF file") as opened:
            self.file.identity.check(opened.fileno(), self.file.path, ModelFilesFailed)
            try:
                mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, OverflowError) as error:
                raise CheckpointError(
                    f"{self.file.path}: it cannot be mapped ({error}); expected room for "
                    f"{self.file.num_bytes:,} bytes of addresses (ulimit -v)"
                ) from None
        self._in_use = True
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            return torch.from_numpy(np.frombuffer(mapped, np.uint8))
