"""A mapped file that loses pages ends the process in one line with exit code 1; other bus errors do not."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.forks.forks import Forks

ROOT = Path(__file__).parents[3]
PAGES = 64

READ = """
import mmap, os, sys
from workers.memory.lost_pages import end_lost_pages_in_one_line
end_lost_pages_in_one_line()
end_lost_pages_in_one_line()
path, by_thread = sys.argv[1], sys.argv[2] == "thread"
with open(path, "r+b") as file:
    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    assert mapped[-1] == 7
    os.truncate(path, 5000)
    assert mapped[4999] == 7
    print("still here", flush=True)
    if by_thread:
        import threading
        threads = [threading.Thread(target=lambda: mapped[-1]) for _ in range(4)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
    mapped[3 * mmap.PAGESIZE]
    print("never")
"""


def run(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize("thread", ["main", "thread"])
@pytest.mark.parametrize("name", ["model.gguf", "a model of (deleted) \n naïve name.gguf"])
def test_a_file_cut_short_is_named(tmp_path: Path, name: str, thread: str) -> None:
    path = tmp_path / name
    path.write_bytes(bytes([7]) * 4096 * PAGES)
    ended = run(READ, path, thread)
    assert (ended.returncode, ended.stdout) == (1, "still here\n")
    shown = str(path).replace("\n", "\\012")
    assert ended.stderr.splitlines() == [
        f"error: {shown}: it was cut to 5000 bytes while it was in use; expected that nobody changes a model "
        "in use: start again"
    ]


def test_a_file_that_is_gone_as_well_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(bytes([7]) * 4096 * PAGES)
    ended = run(READ.replace("    mapped[3 *", "    os.unlink(path)\n    mapped[3 *"), path, "main")
    assert ended.returncode == 1
    assert len(ended.stderr.splitlines()) == 1
    assert f"{path} (deleted): its disk does not give byte 12288, or the file was cut short" in ended.stderr


def test_kernels_in_threads_of_their_own_end_so_too(tmp_path: Path, forks: Forks) -> None:
    """One matrix larger than the processor's caches, rows shared out among the pool's threads."""
    path = tmp_path / "model.bin"
    path.write_bytes(bytes(4 * 4096 * 256))
    program = """
import os, sys
import numpy as np, torch
from orchestrator import kernels
from workers.kernels import Matrices, Matrix
from workers.memory.lost_pages import end_lost_pages_in_one_line
end_lost_pages_in_one_line()
torch.set_num_threads(2)
path = sys.argv[1]
matrix = torch.from_numpy(np.memmap(path, np.float32, mode="c", shape=(4096, 256)))
weights, x = Matrices.of(Matrix.of(matrix)), torch.ones(1, 256)
for _ in range(50):
    kernels.linear(x, weights)
os.truncate(path, 0)
kernels.linear(x, weights)
"""
    for _ in range(3):
        path.write_bytes(bytes(4 * 4096 * 256))
        command = forks.command(["-c", program, str(path)])
        ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert ended.returncode == 1, ended.stderr
        assert [line for line in ended.stderr.splitlines() if "Warning" not in line] == [
            f"error: {path}: it was cut to 0 bytes while it was in use; expected that nobody changes a model "
            "in use: start again"
        ]


def test_a_bus_error_of_somebody_else_ends_as_ever() -> None:
    program = """
import os, signal
from workers.memory.lost_pages import end_lost_pages_in_one_line
end_lost_pages_in_one_line()
os.kill(os.getpid(), signal.SIGBUS)
"""
    ended = run(program)
    assert (ended.returncode, ended.stderr) == (-signal.SIGBUS, "")
