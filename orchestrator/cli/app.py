"""The commands, and how a command line that cannot be done ends."""

from __future__ import annotations

import errno
import io
import os
import resource
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator.cli.output import print_error
from orchestrator.cli.usage import UsageError, usage_message
from placement.errors import PotluckError
from placement.files.quote import first_line
from placement.units import size

COMMANDS = {
    "generate": "Continue a prompt.",
    "serve": "Serve a model over HTTP: OpenAI's and Anthropic's APIs, and a page to look at.",
    "chat": "Talk to a model that `potluck serve` serves.",
    "keys add": "Make a key for a client of `potluck serve`, and print it once.",
    "keys list": "Say who has a key, and how much each may ask.",
    "keys remove": "Take a client's key away.",
    "inspect": "Say what is in a model's files, what it needs and whether that fits here.",
    "init": "Write a cluster file, from options or from questions.",
    "probe": "Measure what boxes and links can do; plans use the figures from then on.",
    "plan": "Decide which box and memory holds each expert, and predict the speed.",
    "stats": "Write which experts a model's tokens use: of text, or as another engine recorded it.",
    "stats compare": "Say how alike two routing files are, layer by layer.",
    "stats drift": "Test whether routing has changed from one trace to another.",
    "trace": "Write a synthetic trace: which experts the tokens of invented text use.",
    "simulate": (
        "Replay a trace through a plan: step times, tokens/s, what is busy and what bounds each layer."
    ),
    "hardware": "List the hardware that cluster files may name, or say what is known of one kind.",
    "whatif": "Rank single changes to a cluster by tokens per second.",
    "study": "Plan and judge every cell of a grid; an interrupted study goes on where it stopped.",
    "verify": "Note digests of all of a model's bytes, or find what has changed since they were noted.",
    "up": "Start a cluster: Ray, keys and the workers of a plan, on all boxes that are there.",
    "status": "Show each box of a running cluster: what it holds, since when, its last word.",
    "top": "Show what a server is doing, once a second: speed, boxes, requests, events.",
    "logs": "Print the log of a box's worker process.",
    "update": "Install a wheel on the boxes of a running cluster, one after another.",
    "down": "End a cluster on all its boxes: processes, sockets, shared memory and keys.",
    "demo": "Plan, start and run the shipped model on three worker processes of this machine.",
}
"""Name -> first line of its help: the function of that name in the module of that name.

A name of two words is a command of its own, `stats compare` in `stats_compare.py`; its first word alone does
what it always did. `keys` alone is no command.
"""

_PACKAGE = "potluck-moe"
_NOT_MAPPED = "failed to map segment"  # what the loader says of a library for which there is no room
_TOO_MANY_FILES = {errno.EMFILE, errno.ENFILE}
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_A_BLOCK_BYTES = 4096


def load(arguments: Sequence[str]) -> typer.Typer:
    """The command line with the one command that `arguments` name; the others stand there by name only.

    Most commands take seconds to load, which nobody should wait for who wants help or mistyped a name.

    Raises:
        MemoryError: there is no room for the libraries of a command.
        NativeCodeNotBuilt: it was not compiled.
    """
    app = typer.Typer(
        name="potluck",
        help="Run a Mixture-of-Experts model too big for any box you own by pooling the boxes you do own.",
        epilog="Start with `make demo`. With --json a command that gives a result prints it as one document.",
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_whole)
    wanted = _named(arguments)
    for name, summary in COMMANDS.items():
        if name == wanted:
            app.command(name, epilog=_name_relatives(name))(command(name))
        else:
            app.command(name, help=summary)(_not_loaded)
    return app


def command(name: str) -> Callable[..., Any]:
    """The function behind a command."""
    name = name.replace(" ", "_")
    try:
        module = import_module(f"orchestrator.cli.{name}")
    except ImportError as error:
        if _NOT_MAPPED in str(error):
            raise MemoryError(str(error)) from error
        raise
    function: Callable[..., Any] = getattr(module, name)
    return function


def run(app: typer.Typer, arguments: Sequence[str]) -> int:
    """Do what `arguments` say; a user's mistake is one line on standard error and exit code 2."""
    if sys.stdout is None:
        print_error("standard output is closed: expected a place for the result, such as `> FILE`")
        return 2
    names = _second_words(arguments)
    if names and arguments[1:] in (["--help"], ["-h"]):
        width = max(map(len, names))
        lines = [f"  potluck {name:<{width}}  {COMMANDS[name]}" for name in names]
        sys.stdout.write("\n".join([f"Usage: potluck {arguments[0]} COMMAND", "", *lines, ""]))
        return 0
    if names:
        print_error(f"potluck {arguments[0]}: expected {' or '.join(f'`potluck {name}`' for name in names)}")
        return 2
    try:
        # Not standalone: typer would print a framed message of several lines for a mistake in an option.
        code = app(_join_name(arguments) or ["--help"], prog_name="potluck", standalone_mode=False)
        sys.stdout.flush()
        return code or 0
    except UsageError as error:
        print_error(usage_message(error, _named(arguments)))
    except PotluckError as error:
        print_error(str(error))
        return error.exit_code
    except MemoryError as error:
        return out_of_memory(error)
    except ImportError as error:
        if _NOT_MAPPED not in str(error):
            raise
        return out_of_memory(error)
    except BrokenPipeError:
        # `potluck … | head`: nobody reads on; the code is what typer gives where it notices itself.
        sys.stdout = io.StringIO()
        return 1
    except Exception as error:
        if _number_of(error) in _TOO_MANY_FILES:
            print_error(_more_files())
            return 2
        if not isinstance(error, OSError) or error.errno not in _NO_ROOM:
            raise
        what = error.filename or _full_or_result()
        print_error(f"cannot write {what}: {error.strerror}; make room and try again")
        # What did not go out would fail again when the interpreter empties its buffers.
        sys.stdout = io.StringIO()
    return 2


def _full_or_result() -> str:
    """Where there is no room, as far as that can be told; a run writes more than its result."""
    temporary = os.environ.get("TMPDIR", "/tmp")
    place = full_place((temporary, "/tmp", "/dev/shm", str(Path.home())))
    return f"in {place}, which is full" if place else "the result"


def full_place(places: Iterable[str]) -> str:
    """The first of these folders whose disk has no room left, "" where all have some."""
    for place in places:
        with suppress(OSError):
            if shutil.disk_usage(place).free < _A_BLOCK_BYTES:
                return place
    return ""


def _number_of(error: BaseException) -> int | None:
    """The system's, of an error or what caused it; ZeroMQ's errors have it too and are no OSError."""
    found = getattr(error, "errno", None)
    if isinstance(found, int) or error.__cause__ is None:
        return found
    return _number_of(error.__cause__)


def _more_files() -> str:
    """What to do where no more files and sockets may be open."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return (
        f"too many open files: this process may have {limit} (ulimit -n {limit}): raise that limit, or use "
        "fewer workers"
    )


def out_of_memory(error: Exception) -> int:
    """Tell it in one line; the exit code."""
    print_error(f"out of memory: {first_line(error)}; {_more_memory()}")
    return 2


def _more_memory() -> str:
    """What to do where memory ran out: a limit on addresses may be all that is short."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    less = "give less to do at once, or use a larger box"
    if limit == resource.RLIM_INFINITY:
        return less
    return f"addresses are limited to {size(limit)} (ulimit -v {limit // 1024}): raise that limit, {less}"


def _join_name(arguments: Sequence[str]) -> list[str]:
    """The arguments with a command's name of two words as one."""
    name = " ".join(arguments[:2])
    return [name, *arguments[2:]] if name in COMMANDS else list(arguments)


def _named(arguments: Sequence[str]) -> str:
    """The command that the arguments name, "" where they name none."""
    word = next((word for word in _join_name(arguments) if not word.startswith("-")), "")
    return word if word in COMMANDS else ""


def _second_words(arguments: Sequence[str]) -> list[str]:
    """The commands of two words that begin as `arguments` do, where the first word alone is none."""
    first = _join_name(arguments)[:1]
    if not first or first[0] in COMMANDS:
        return []
    return [name for name in COMMANDS if name.startswith(f"{first[0]} ")]


def _name_relatives(name: str) -> str | None:
    """Where a command's help points to: those whose names begin with its own."""
    relatives = [f"`potluck {other}`" for other in COMMANDS if other.startswith(f"{name} ")]
    return f"See also {', '.join(relatives)}." if relatives else None


def _print_version(is_asked: bool) -> None:
    if is_asked:
        sys.stdout.write(f"potluck {version(_PACKAGE)}\n")
        raise typer.Exit


def _whole(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print name and version."),
    ] = False,
) -> None:
    """Stands for options without a command."""


def _not_loaded() -> None:
    """Stands for a command that the arguments do not name."""
