"""What is predicted of the bytes that a disk gives."""

from __future__ import annotations

import numpy as np

from benchmarks.disk_plan import predicted_read
from benchmarks.real_size.measured import Passes


def test_a_pass_reads_its_distinct_experts_on_the_disk_once() -> None:
    routing = [
        [[[0, 1], [1, 3]], [[1, 2], [3, 3]]],  # two rows: layer 0 wants 0, 1, 2; layer 1 wants 1, 3
        [[[2, 3], [0, 0]], [[2, 3], [0, 2]]],  # layer 0 wants 2, 3; layer 1 wants 0, 2
    ]
    on_disk = np.array([[False, True, True, False], [False, False, False, True]])
    expert_bytes = np.array([100, 7], np.int64)
    passes = Passes(2, 16, [1.0, 1.0], {}, routing)

    assert predicted_read(passes, on_disk, expert_bytes) == ((2 * 100 + 7) + (100 + 0)) / 2
