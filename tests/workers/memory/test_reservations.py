"""Two commands do not set aside the same memory; what they share counts once; a killed one leaves nothing."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from placement.errors import PlanDoesNotFit
from tests.orchestrator.processes import DEADLINE_S, ROOT
from workers.memory.budget import Need, SharedPart, file_key
from workers.memory.free import LEAST_MARGIN_BYTES
from workers.memory.reservations import Reservation, free_memory, reserve, shared_bytes

GB = 10**9
FREE = 20 * GB

OTHER = """
    import json, sys
    from pathlib import Path
    from workers.memory.budget import Need, SharedPart
    from workers.memory.reservations import reserve
    kept = None
    for line in sys.stdin:
        asked = json.loads(line)
        if kept is None or "take" not in asked:
            shared = tuple(SharedPart(*part) for part in asked["shared"])
            need = Need("something", asked["bytes"], shared)
            folder = Path(asked["folder"])
            kept = reserve([need], what="another run", where="here", advice="go", folder=folder)
        else:
            taken = b"1" * asked["take"]
        print("done", flush=True)
"""


class Other:
    """Another process that reserves."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(OTHER)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def reserve(self, num_bytes: int, shared: tuple[SharedPart, ...] = ()) -> None:
        parts = [[part.file, part.each_bytes, part.mask] for part in shared]
        self._say({"bytes": num_bytes, "shared": parts, "folder": str(self._folder)})

    def take(self, num_bytes: int) -> None:
        self._say({"take": num_bytes})

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(DEADLINE_S)

    def _say(self, asked: dict[str, object]) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "done\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "reservations"


@contextmanager
def another(folder: Path) -> Iterator[Other]:
    process = Other(folder)
    try:
        yield process
    finally:
        process.kill()


@pytest.fixture
def other(folder: Path) -> Iterator[Other]:
    with another(folder) as process:
        yield process


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that always has the same memory available."""
    memory = psutil.virtual_memory()._replace(available=FREE)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr("workers.memory.free.cgroup_limits", lambda root: [])


@contextmanager
def reserved(num_bytes: int, folder: Path, **more: object) -> Iterator[Reservation]:
    need = Need("experts", num_bytes)
    words = {"what": "a run", "where": "this machine", "advice": "wait", "folder": folder}
    reservation = reserve([need], **words, **more)  # type: ignore[arg-type]
    try:
        yield reservation
    finally:
        reservation.close()


def test_what_another_process_reserved_is_not_free_and_it_is_named(folder: Path, other: Other) -> None:
    with reserved(15 * GB, folder):
        pass
    other.reserve(6 * GB)
    free = free_memory(folder=folder)
    assert abs(free.num_bytes - (FREE - 6 * GB)) < GB // 10
    expected = (
        rf"^this machine: .* of memory are missing: .* this machine, less what other commands have set aside "
        rf"\(6\.0 GB for process {other.pid} \(another run\)\), leaves 14\.0 GB, .*: wait$"
    )
    with pytest.raises(PlanDoesNotFit, match=expected), reserved(15 * GB, folder):
        pass
    with reserved(13 * GB, folder):
        pass
    other.kill()
    assert free_memory(folder=folder).num_bytes == FREE
    assert list(folder.glob("*.json")) == []


def test_of_many_processes_the_largest_are_named(folder: Path) -> None:
    with ExitStack() as stack:
        others = [stack.enter_context(another(folder)) for _ in range(5)]
        for gigabytes, process in enumerate(others, start=1):
            process.reserve(gigabytes * GB)
        told_by = free_memory(folder=folder).told_by
    largest = "; ".join(
        f"{gigabytes}.0 GB for process {others[gigabytes - 1].pid} (another run)" for gigabytes in (5, 4, 3)
    )
    assert told_by.endswith(f"({largest}; 3.0 GB for 2 more),"), told_by


def test_memory_that_was_taken_counts_no_more_since_the_machine_has_it_no_more(
    folder: Path, other: Other
) -> None:
    other.reserve(GB)
    other.take(GB // 4)
    # The machine of this test does not see what was taken.
    assert abs(free_memory(folder=folder).num_bytes - (FREE - GB + GB // 4)) < GB // 20


def test_mapped_parts_that_both_have_count_once(folder: Path, other: Other) -> None:
    other.reserve(8 * GB, (SharedPart("m layer 3", GB, 0b11110000), SharedPart("m head", 2 * GB)))
    mine = (SharedPart("m layer 3", GB, 0b00111100), SharedPart("m head", 2 * GB))
    # The other's own memory grows a little by itself.
    assert free_memory(folder=folder).num_bytes == pytest.approx(FREE - 6 * GB - 2 * GB, rel=0.01)
    # Half of what the other maps of the layer, and the head, are mapped here too: 4 GB.
    assert free_memory(mine, folder=folder).num_bytes == pytest.approx(FREE - 4 * GB, rel=0.01)
    words = {"what": "a run", "where": "this machine", "advice": "wait"}
    # 8 + 15 - 4 GB of 20.
    reserve([Need("experts", 15 * GB, mine)], **words, folder=folder).close()
    with pytest.raises(PlanDoesNotFit):
        reserve([Need("experts", 15 * GB)], **words, folder=folder)


def test_a_process_does_not_stand_in_its_own_way(folder: Path) -> None:
    with reserved(15 * GB, folder) as own:
        assert free_memory(folder=folder).num_bytes == FREE
        margin = round(0.03 * 5 * GB)
        assert abs(own.room_bytes() - (5 * GB - max(margin, LEAST_MARGIN_BYTES))) < GB // 10
        own.narrow([Need("less", 3 * GB)])
        assert own.room_bytes() > 15 * GB


def test_workers_that_a_reservation_covers_are_not_refused_until_it_is_narrowed(folder: Path) -> None:
    with reserved(15 * GB, folder, covers=True) as head:
        with reserved(10 * GB, folder, part_of=head.name):
            pass
        with pytest.raises(PlanDoesNotFit), reserved(10 * GB, folder, part_of="another"):
            pass
        head.narrow([Need("the head's", 12 * GB)])
        with pytest.raises(PlanDoesNotFit), reserved(10 * GB, folder, part_of=head.name):
            pass


def test_files_that_mean_nothing_are_passed_over(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    (folder / "1-a.json").write_text("nonsense")
    (folder / "2-b.json").symlink_to("/etc/passwd")
    with reserved(GB, folder):
        assert free_memory(folder=folder).num_bytes == FREE
    assert not (folder / "1-a.json").exists()
    assert Path("/etc/passwd").exists()
    assert folder.stat().st_mode & 0o077 == 0


def test_a_folder_of_somebody_else_is_not_trusted(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "link").symlink_to(elsewhere)
    with pytest.raises(PlanDoesNotFit, match="expected a folder of this user alone"):
        free_memory(folder=tmp_path / "link")


def test_a_models_key_is_that_of_its_file(tmp_path: Path) -> None:
    (tmp_path / "m").write_text("")
    (tmp_path / "same").hardlink_to(tmp_path / "m")
    (tmp_path / "n").write_text("")
    assert file_key(tmp_path / "m") == file_key(tmp_path / "same") != file_key(tmp_path / "n")


parts = st.lists(st.builds(SharedPart, st.sampled_from("ab"), st.sampled_from((1, 7)), st.integers(0, 255)))


@given(first=parts, second=parts)
def test_shared_bytes_are_those_of_a_set(first: list[SharedPart], second: list[SharedPart]) -> None:
    def pieces(parts: list[SharedPart]) -> set[tuple[str, int, int]]:
        return {(p.file, p.each_bytes, i) for p in parts for i in range(8) if p.mask >> i & 1}

    left = pieces(first) - pieces(second)
    assert shared_bytes(first, second) == sum(each_bytes for _, each_bytes, _ in left)


def test_a_place_where_nothing_can_be_noted_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "potluck"
    for call in (
        lambda: reserve([Need("something", 1)], what="a run", where="here", advice="go", folder=folder),
        lambda: free_memory(folder=folder),
    ):
        with pytest.raises(PlanDoesNotFit) as caught:
            call()
        line = str(caught.value)
        assert line.startswith(f"{folder}: cannot note what memory is set aside: Not a directory")
        assert "\n" not in line
