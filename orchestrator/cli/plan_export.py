"""`potluck plan --export FORMAT=FILE`: the plan for another engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from shlex import join, quote
from typing import Annotated, Any

import typer

from orchestrator.cli.inputs import name_in_errors
from placement.errors import InputError
from placement.interop.export import EXPORTS, Exported, ExportInputs, check_format, export_plan
from placement.plan import Plan

_LLAMACPP = "llama.cpp"

Export = Annotated[
    list[str] | None,
    typer.Option(
        help=f"Write the plan for another engine too: {', '.join(EXPORTS)} (docs/interop.md).",
        metavar="FORMAT=FILE",
    ),
]
Buffer = Annotated[
    list[str] | None,
    typer.Option(
        help="Of --export llama.cpp: what llama.cpp calls a worker's memory, such as "
        "attic-ram=RPC0[attic:50052].",
        metavar="DEVICE=NAME",
    ),
]


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """`files`: (format, file) in the order given; `buffers`: worker name -> llama.cpp buffer."""

    files: tuple[tuple[str, Path], ...] = ()
    buffers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, exports: Sequence[str], buffers: Sequence[str]) -> ExportOptions:
        """Raises InputError: not of the form, an unknown format, or buffers that nothing is written for."""
        files = []
        for text in exports:
            file_format, path = _split("--export", "FORMAT=FILE", text)
            with name_in_errors("--export", InputError):
                check_format(file_format)
            files.append((file_format, Path(path)))
        if buffers and _LLAMACPP not in dict(files):
            raise InputError(f"--buffer: expected --export {_LLAMACPP}=FILE, which it is for")
        return cls(tuple(files), dict(_split("--buffer", "DEVICE=NAME", text) for text in buffers))

    def check_workers(self, plan: Plan) -> None:
        """Raise InputError for a buffer of a worker that the plan does not have."""
        names = [tier.name for tier in plan.tiers]
        for name in self.buffers:
            if name not in names:
                raise InputError(f"--buffer: expected one of {', '.join(names)}, found {name!r}")


def write_exports(options: ExportOptions, inputs: ExportInputs) -> list[Exported]:
    """Write all of them.

    Raises:
        InputError, PlanError: names the option; what a format cannot express.
    """
    options.check_workers(inputs.plan)
    written = []
    for file_format, path in options.files:
        with name_in_errors(f"--export {file_format}"):
            written.append(export_plan(file_format, path, inputs))
    return written


def export_document(exported: Exported) -> dict[str, Any]:
    """docs/json.md lists the keys."""
    return {
        "format": exported.file_format,
        "file": exported.path,
        "arguments": list(exported.arguments),
        "notes": list(exported.notes),
    }


def export_notes(exported: Exported) -> list[str]:
    """What to tell the engine, and what it does otherwise than the plan says."""
    # llama.cpp takes no such file: xargs turns its quoted line into arguments.
    if exported.file_format == _LLAMACPP:
        use = f"xargs -a {quote(exported.path)} llama-server -m MODEL.gguf"
    else:
        use = f"sglang.launch_server … {join(exported.arguments)}"
    return [f"wrote {exported.path}: {use}", *exported.notes]


def _split(option: str, form: str, text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not (name and separator and value):
        raise InputError(f"{option}: expected {form}, found {text!r}")
    return name, value
