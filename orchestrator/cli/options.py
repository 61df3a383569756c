"""Option values that several commands share."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from placement.quantisation import BITS_PER_WEIGHT

Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]

Quant = Annotated[
    str | None,
    typer.Option(
        help=f"How experts are kept: {', '.join(BITS_PER_WEIGHT)}; default bfloat16.", metavar="FORM"
    ),
]


class DtypeName(StrEnum):
    """How weights and caches are kept. Sums are float32 in both."""

    float32 = "float32"
    bfloat16 = "bfloat16"
