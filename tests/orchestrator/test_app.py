"""The list of commands, and what is loaded for which of them."""

from __future__ import annotations

import errno
import resource
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import typer
import zmq

from orchestrator.cli.app import COMMANDS, command, full_place
from orchestrator.cli.app import run as execute
from tests.orchestrator.command_line import Potluck, says
from tests.orchestrator.processes import DEADLINE_S, run, start

GENERATE = ["generate", "--model", "nowhere"]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_listed_with_the_first_line_of_its_help(name: str, potluck: Potluck) -> None:
    doc = command(name).__doc__
    assert doc is not None
    assert doc.strip().splitlines()[0] == COMMANDS[name]
    assert name in potluck("--help")[1]
    code, out, _ = potluck(*name.split(), "--help")
    assert code == 0
    assert f"Usage: potluck {name} " in out


def test_help_of_stats_points_to_its_relatives(potluck: Potluck) -> None:
    out = " ".join(potluck("stats", "--help")[1].split())
    assert "See also `potluck stats compare`, `potluck stats drift`." in out


def test_help_of_a_first_word_lists_its_commands(potluck: Potluck) -> None:
    for option in ("--help", "-h"):
        code, out, err = potluck("keys", option)
        assert (code, err) == (0, "")
        for name in ("keys add", "keys list", "keys remove"):
            assert f"potluck {name} " in out
            assert COMMANDS[name] in out


def test_the_version_is_printed_with_the_name(potluck: Potluck) -> None:
    assert potluck("--version") == (0, f"potluck {version('potluck-moe')}\n", "")
    assert "--version" in potluck("--help")[1]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        ([], 0),
        (["nonsense"], 2),
        (["plan", "--nonsense"], 2),
        (["generate", "--non"], 2),
    ],
)
def test_help_and_mistakes_wait_for_neither_torch_nor_ray(arguments: list[str], code: int) -> None:
    program = """
        import sys
        from orchestrator.cli.main import main
        try:
            main()
        finally:
            assert not {"torch", "ray"} & set(sys.modules)
    """
    with run(program, *arguments) as process:
        _, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == code, err
    assert "AssertionError" not in err


def test_a_reader_that_stops_reading_ends_a_command_silently() -> None:
    """`potluck … | head`."""
    routing = Path(__file__).parents[2] / "models" / "potluck-tiny" / "routing.npz"
    with start("-m", "orchestrator.cli.main", "stats", "compare", routing, routing, "--json") as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        err = process.stderr.read()
    assert (process.returncode, err) == (1, "")


def test_memory_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    app = typer.Typer()

    @app.command()
    def large() -> None:
        np.empty(2**62, dtype=np.uint8)

    assert execute(app, ["--"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert says(err, "error: out of memory: … 4.00 EiB"), err


def test_a_limit_on_addresses_is_named_where_memory_ran_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    app = typer.Typer()

    @app.command()
    def large() -> None:
        raise MemoryError

    monkeypatch.setattr(resource, "getrlimit", lambda _: (500_000 << 10, resource.RLIM_INFINITY))
    assert execute(app, ["--"]) == 2
    _, err = capsys.readouterr()
    assert says(err, "error: out of memory: … limited to 512.0 MB (ulimit -v 500000): raise that limit"), err


def test_libraries_that_find_no_room_are_told_in_one_line() -> None:
    limited = "import resource; resource.setrlimit(resource.RLIMIT_AS, (300_000 << 10,) * 2); "
    done = subprocess.run(
        [sys.executable, "-c", limited + "from orchestrator.cli.main import main; main()", *GENERATE],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert says(done.stderr, "error: out of memory: … limited to 307.2 MB (ulimit -v 300000)"), done.stderr


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(["demo"], marks=pytest.mark.long),
        [*GENERATE[:2], "models/potluck-tiny", "--prompt", "Once", "--json"],
        ["up"],
    ],
)
def test_code_that_was_not_compiled_is_one_line(words: list[str]) -> None:
    """A clone that was updated and not installed again."""
    program = """
        import sys
        sys.modules["transport._frames"] = None
        from orchestrator.cli.main import main
        main()
    """
    with run(program, *words) as process:
        out, err = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, out) == (2, "")
    assert says(err, "error: transport: … run `make demo` or `pip install -e .` in the clone"), err


@pytest.mark.parametrize("is_cause", [False, True])
@pytest.mark.parametrize("kind", [OSError, zmq.ZMQError])
def test_too_many_open_files_are_one_line(
    kind: type[Exception], is_cause: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    app = typer.Typer()

    @app.command()
    def busy() -> None:
        error = kind(errno.EMFILE, "Too many open files")
        if is_cause:
            raise RuntimeError("the watch over the workers has failed") from error
        raise error

    assert execute(app, ["--"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert says(err, f"error: too many open files: … {limit} (ulimit -n {limit})"), err


@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-", ">&- <&-"])
def test_a_closed_standard_output_is_one_line(closed: str, tmp_path: Path) -> None:
    command = f"{sys.executable} -m orchestrator.cli.main inspect models/potluck-tiny --json {closed}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    expected = "" if "2>&-" in closed else "error: standard output is closed: expected a place for the result"
    assert done.stderr.startswith(expected)
    assert done.stderr.count("\n") == bool(expected)


def test_a_folder_on_a_full_disk_is_named(tmp_path: Path) -> None:
    # The kernel's own file system never has room.
    assert full_place([str(tmp_path), "/nowhere", "/proc"]) == "/proc"
    assert full_place([str(tmp_path)]) == ""
