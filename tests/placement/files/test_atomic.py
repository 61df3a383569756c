"""Results replace regular files whole, go through to devices and pipes, and never destroy an input."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from placement.errors import InputError
from placement.files.atomic import check_targets, replacing


def write(path: Path | str, content: bytes = b"new") -> None:
    with replacing(path) as file:
        file.write(content)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("old", [0o600, 0o640, 0o664])
def test_an_existing_file_keeps_its_permissions(tmp_path: Path, old: int) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(b"old")
    path.chmod(old)
    write(path)
    assert (path.read_bytes(), mode(path)) == (b"new", old)


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_a_new_file_gets_what_the_umask_leaves(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write(tmp_path / "plan.json")
    finally:
        os.umask(before)
    assert mode(tmp_path / "plan.json") == 0o666 & ~umask


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_stays_and_what_it_points_to_is_replaced(tmp_path: Path, exists: bool) -> None:
    (tmp_path / "folder").mkdir()
    target, link = tmp_path / "folder" / "plan.json", tmp_path / "current.json"
    if exists:
        target.write_bytes(b"old")
    link.symlink_to(target)
    write(link)
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["current.json", "folder", "plan.json"]


def test_an_error_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(b"old")

    def fail_halfway() -> None:
        with replacing(path) as file:
            file.write(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_halfway()
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("plan.json", b"old")]


def test_a_name_as_long_as_the_file_system_takes_is_written(tmp_path: Path) -> None:
    path = tmp_path / ("p" * 250 + ".json")
    write(path)
    assert path.read_bytes() == b"new"


def test_a_device_stays_a_device() -> None:
    write("/dev/null")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_a_full_device_is_one_line() -> None:
    with pytest.raises(InputError, match="cannot write /dev/full: No space left on device"):
        write("/dev/full")


def test_standard_output_is_written_to_whatever_it_is(tmp_path: Path) -> None:
    program = (
        "from placement.files.atomic import replacing\n"
        "print('before', flush=True)\n"
        "with replacing('/dev/stdout') as file: file.write(b'result\\n')\n"
        "print('after')\n"
    )
    with open(tmp_path / "out.txt", "wb") as file:
        subprocess.run([sys.executable, "-c", program], stdout=file, check=True)
    assert (tmp_path / "out.txt").read_text() == "before\nresult\nafter\n"
    piped = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert piped.stdout == b"before\nresult\nafter\n"


def test_a_pipe_gets_the_whole_result(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    got: list[bytes] = []
    # Open for reading before the writer asks, without waiting for it.
    handle = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(handle, True)

    def read() -> None:
        with os.fdopen(handle, "rb") as file:
            got.append(file.read())

    content = b"x" * 1_000_000
    # A reader that came first and found no writer yet would see the end at once.
    with replacing(pipe) as file:
        file.write(content)
        holder = os.open(pipe, os.O_WRONLY)
        reader = threading.Thread(target=read)
        reader.start()
    os.close(holder)
    reader.join(timeout=120)
    assert got == [content]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_pipe_that_nobody_reads_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    check_targets([tmp_path / "pipe"])
    with pytest.raises(InputError, match="pipe: nobody reads this pipe; start its reader first"):
        write(tmp_path / "pipe")


def test_what_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path, message in (
        (tmp_path, "it is a directory"),
        (tmp_path / "none" / "plan.json", "none is missing"),
        (tmp_path / "loop", "symbolic links"),
        (tmp_path / ("x" * 300), "File name too long"),
        ("a\0b", "cannot write"),
    ):
        with pytest.raises(InputError, match=message):
            check_targets([path])
        with pytest.raises(InputError, match=message):
            write(path)


def test_a_socket_is_refused(tmp_path: Path) -> None:
    os.mknod(tmp_path / "socket", stat.S_IFSOCK | 0o600)
    with pytest.raises(InputError, match="it is no regular file"):
        check_targets([tmp_path / "socket"])


def test_an_input_is_no_target_whatever_it_is_called(tmp_path: Path) -> None:
    source = tmp_path / "cluster.yaml"
    source.write_text("head: a")
    (tmp_path / "link").symlink_to(source)
    (tmp_path / "hard").hardlink_to(source)
    (tmp_path / "folder").symlink_to(tmp_path)
    for target in ("cluster.yaml", "link", "hard", "folder/cluster.yaml"):
        is_same = (
            "yaml: this command reads it" if target == "cluster.yaml" else "yaml, which this command reads"
        )
        with pytest.raises(InputError, match=rf"cluster\.{is_same}; give another name"):
            check_targets([None, tmp_path / target], inputs=[None, tmp_path / "none", source])
    check_targets([tmp_path / "other"], inputs=[source])


def test_two_results_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "plan.json")
    with pytest.raises(InputError, match="link: it is named for two results"):
        check_targets([tmp_path / "plan.json", tmp_path / "link"])
    check_targets(["/dev/null", "/dev/null"])
