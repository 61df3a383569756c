"""`potluck verify`: note what every byte of a model is, and find those that have changed since."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.inputs import model_folder
from orchestrator.cli.options import Json
from orchestrator.cli.output import print_json, print_note
from orchestrator.cli.progress import shown_progress
from placement.errors import ModelFilesFailed
from placement.units import size
from workers.formats.digesting import give_way, own_digests
from workers.formats.digests import (
    Changed,
    Digests,
    compare,
    make_digests,
    read_digests,
    write_digests,
)

# Of changed stretches in the one line that tells of them.
_MOST_NAMED = 4


def verify(
    model: Annotated[Path, typer.Argument(help="Model directory or GGUF file.", metavar="MODEL")],
    against: Annotated[
        Path | None,
        typer.Option(help="Digests of another copy, such as another box's; default the model's own."),
    ] = None,
    json: Json = False,
) -> None:
    """Note digests of all of a model's bytes, or find what has changed since they were noted."""
    folder = model_folder(model)
    give_way()
    if against is not None:
        path, expected = against, read_digests(against)
    else:
        path, known = own_digests(folder)
        if known is None or not known.complete:
            with shown_progress("reading", silent=json) as on_progress:
                made = make_digests(folder, known, lambda digests: write_digests(digests, path), on_progress)
            _tell(folder, path, made, "made", json=json)
            return
        expected = known
    with shown_progress("comparing", silent=json) as on_progress:
        changed = list(compare(folder, expected, on_progress))
    if changed:
        raise ModelFilesFailed(_sentence(folder, changed, path))
    _tell(folder, path, expected, "same", json=json)


def _sentence(model: Path, changed: list[Changed], path: Path) -> str:
    named = "; ".join(map(str, islice(changed, _MOST_NAMED)))
    more = len(changed) - _MOST_NAMED
    rest = f"; and {more} more such stretches" if more > 0 else ""
    return (
        f"{model}: {named}{rest}: not as {path} has them; copy the file again, or, where the model was "
        "changed on purpose, remove those digests and verify again"
    )


def _tell(model: Path, path: Path, digests: Digests, result: str, *, json: bool) -> None:
    if json:
        print_json(
            {
                "model": str(model),
                "result": result,
                "digests": str(path),
                "files": [{"file": file.name, "bytes": file.num_bytes} for file in digests.files],
                "bytes": digests.num_bytes,
            }
        )
        return
    what = f"{len(digests.files)} files, {size(digests.num_bytes)}"
    if result == "made":
        print_note(f"{what}: read, and their digests written to {path}; verify again to compare with them")
    else:
        print_note(f"{what}: every byte is as {path} has it")
