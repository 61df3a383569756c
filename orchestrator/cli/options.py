"""Option values that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from placement.kv_size import KvForm
from placement.weight_format import PLANNED_FORMATS

Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]

KeyFile = Annotated[
    Path, typer.Argument(help="File of API keys, as `potluck serve --api-keys` takes it.", metavar="FILE")
]

Quant = Annotated[
    str | None,
    typer.Option(
        help=f"How experts are kept: {', '.join(PLANNED_FORMATS)}; default bfloat16, or a GGUF file's own.",
        metavar="FORM",
    ),
]

Kv = Annotated[
    KvForm | None,
    typer.Option(
        help="How keys and values are kept; default as the run computes. int8 takes half of bfloat16's "
        "memory and may change the text."
    ),
]
