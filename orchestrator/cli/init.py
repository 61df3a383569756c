"""`potluck init`: write a cluster file, from options or from questions."""

from __future__ import annotations

import getpass
import re
import socket
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from orchestrator.cli.options import Json
from orchestrator.cli.output import errors, print_error, print_json, print_note
from orchestrator.cluster.facts import own_addresses
from orchestrator.cluster.keys_folder import ensure_keys
from orchestrator.cluster.launcher_file import load_launcher
from orchestrator.cluster.launcher_text import MOST_NAME_OF_CLUSTER, Draft, launcher_text
from placement.errors import InputError
from placement.fields.cluster_fields import MOST_NAME, NAME_PATTERN, USER_PATTERN, parse_address
from placement.files.atomic import check_targets, replacing
from placement.files.quote import quote

Value = TypeVar("Value")

_KEYS = ("id_ed25519", "id_ecdsa", "id_rsa")
_NODE_FORM = "NAME=ADDRESS, such as attic=192.168.1.11"


def init(
    out: Annotated[Path, typer.Argument(help="Cluster file to write.", metavar="[FILE]")] = Path(
        "cluster.yaml"
    ),
    head: Annotated[
        str | None,
        typer.Option(help="The box that you will run `potluck` on.", metavar="NAME=ADDRESS"),
    ] = None,
    node: Annotated[
        list[str] | None, typer.Option(help="Another box; once for each.", metavar="NAME=ADDRESS")
    ] = None,
    user: Annotated[str | None, typer.Option(help="Who logs in on the boxes; default you.")] = None,
    key: Annotated[
        Path | None, typer.Option(help="Private key that the boxes accept; default your first in ~/.ssh.")
    ] = None,
    name: Annotated[str, typer.Option(help="What the cluster is called.")] = "home",
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    json: Json = False,
) -> None:
    """Write a cluster file, from options or from questions."""
    if out.exists() and not force:
        raise InputError(f"{out}: there is such a file already: give another name, or --force to replace it")
    check_targets([out])
    name = _cluster_name(name, "--name")
    if head is None and (node or not sys.stdin.isatty()):
        raise InputError(f"--head: expected the box that you will run `potluck` on, {_NODE_FORM}")
    if head is not None:
        boxes = _boxes([("--head", head), *(("--node", one) for one in node or ())])
        draft = Draft(name, next(iter(boxes)), boxes, _user(user, "--user"), _key(key, "--key"))
    else:
        draft = _asked(name, user, key)
    text = launcher_text(draft, out.name)
    _check(text)
    with replacing(out) as file:
        file.write(text.encode())
    launcher = load_launcher(out)
    ensure_keys(launcher.state_folder, launcher.name, launcher.addresses)
    if json:
        print_json(
            {
                "file": str(out),
                "name": launcher.name,
                "head": launcher.head.name,
                "nodes": [{"name": box.name, "address": box.address} for box in launcher.boxes],
                "keys": str(launcher.state_folder),
            }
        )
        return
    print_note(f"wrote {out}, and keys into {launcher.state_folder}, which only you can read")
    print_note(f"next, on {launcher.head.name}: potluck up {out} --model DIR")


def _check(text: str) -> None:
    """See that what is to be written can be read, before it takes the place of anything."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cluster.yaml"
        path.write_text(text)
        load_launcher(path)


def _boxes(given: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Name -> address, in order; raises InputError, which names the option."""
    boxes: dict[str, str] = {}
    for option, text in given:
        name, address = _box(text, option)
        if name in boxes:
            raise InputError(f"{option}: expected each name once, found {name!r} again")
        if address in boxes.values():
            raise InputError(f"{option}: expected each address once, found {address} again")
        boxes[name] = address
    return boxes


def _box(text: str, where: str) -> tuple[str, str]:
    name, separator, address = text.partition("=")
    if not separator:
        raise InputError(f"{where}: expected {_NODE_FORM}, found {quote(text)}")
    if re.fullmatch(NAME_PATTERN, name) is None or len(name) > MOST_NAME:
        raise InputError(
            f"{where}: expected a name of letters, digits, '-', '_' and '.', at most {MOST_NAME}, found "
            f"{quote(name)}"
        )
    try:
        return name, parse_address(address)
    except ValueError as error:
        raise InputError(f"{where}: {error}") from None


def _cluster_name(name: str, where: str) -> str:
    if re.fullmatch(NAME_PATTERN, name) is None or len(name) > MOST_NAME_OF_CLUSTER:
        raise InputError(
            f"{where}: expected letters, digits, '-', '_' and '.', at most {MOST_NAME_OF_CLUSTER}, found "
            f"{quote(name)}"
        )
    return name


def _user(user: str | None, where: str) -> str:
    user = getpass.getuser() if user is None else user
    if re.fullmatch(USER_PATTERN, user) is None or len(user) > MOST_NAME:
        raise InputError(f"{where}: expected a user's name, found {quote(user)}")
    return user


def _key(key: Path | None, where: str) -> str:
    """The private key's path, with ~/ where it lies in the home."""
    if key is None:
        key = _usual_key()
        if key is None:
            raise InputError(
                f"{where}: found no private key in ~/.ssh: make one with `ssh-keygen -t ed25519` and bring "
                "it to each box with `ssh-copy-id`, or name another"
            )
    place = key.expanduser().absolute()
    try:
        with place.open("rb") as file:
            start = file.read(100)
    except OSError as error:
        raise InputError(f"{where}: cannot read {key}: {error.strerror}") from error
    if b"PRIVATE KEY" not in start:
        what = f", such as {key.with_suffix('')}" if key.suffix == ".pub" else ""
        raise InputError(f"{where}: expected a private key{what}, found another file: {key}")
    home = Path.home()
    return f"~/{place.relative_to(home)}" if place.is_relative_to(home) else str(place)


def _usual_key() -> Path | None:
    """The first key that ssh would take by itself."""
    folder = Path.home() / ".ssh"
    return next((folder / name for name in _KEYS if (folder / name).is_file()), None)


def _asked(name: str, user: str | None, key: Path | None) -> Draft:
    """The answers of a person at a terminal, each asked again until it can be taken."""
    errors.print("Boxes are written NAME=ADDRESS. The head is the one that you will run `potluck` on.")
    here = next(iter(own_addresses()), None)
    own = None if here is None else f"{socket.gethostname().partition('.')[0]}={here}"
    boxes = dict([_ask("head", own, lambda text: _box(text, "head"))])
    while True:
        more = _ask("another box, or nothing", "", lambda text: _another(text, boxes))
        if more is None:
            break
        boxes[more[0]] = more[1]
    head = next(iter(boxes))
    said_user = _ask("who logs in there", user or getpass.getuser(), lambda text: _user(text, "user"))
    usual = key or _usual_key()
    said_key = _ask(
        "private key", None if usual is None else str(usual), lambda text: _key(Path(text), "key")
    )
    return Draft(name, head, boxes, said_user, said_key)


def _another(text: str, boxes: dict[str, str]) -> tuple[str, str] | None:
    if not text:
        return None
    _boxes([*(("box", f"{name}={address}") for name, address in boxes.items()), ("box", text)])
    return _box(text, "box")


def _ask(question: str, default: str | None, parse: Callable[[str], Value]) -> Value:
    while True:
        # Not by a library's prompt, which would write to standard output.
        errors.print(f"{question}{f' [{default}]' if default else ''}: ", end="", markup=False)
        line = sys.stdin.readline()
        if not line:
            raise InputError("the questions were not answered: nothing was written")
        try:
            return parse(line.strip() or default or "")
        except InputError as error:
            print_error(str(error))
