"""What is compiled together for a card: a few kernels of one source file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from placement.weight_format import FORMATS

SOURCES = Path(__file__).parents[1] / "kernels" / "gpu"

KV_WORDS = {"float32": "float", "bfloat16": "uint16_t", "int8": "int8_t"}
"""Forms of keys and values, and what a number of each is in the kernels."""
ATTENTION_TILES = ((1, 1), (2, 1), (4, 1), (1, 2), (2, 2), (1, 4))
"""Query heads that a warp takes along, and groups of 128 dimensions: products up to 4 fit its registers."""


@dataclass(frozen=True, slots=True)
class Module:
    """Compiled as `#include "header"` and the given lines, which make kernels of the header's templates."""

    name: str
    header: str
    kernels: tuple[str, ...]
    lines: tuple[str, ...] = ()

    @property
    def source(self) -> str:
        return "\n".join((f'#include "{self.header}"', *self.lines, ""))


_LINEAR_TEMPLATES = {
    "DotFloats": {
        "float32": "Float32",
        "bfloat16": "Bfloat16",
        "float16": "Float16",
        "fp8_e4m3": "Fp8E4m3",
    },
    "Dot256": {
        "q6_k": "Q6_K",
        "q5_k": "Q5_K",
        "q4_k": "Q4_K",
        "q3_k": "Q3_K",
        "q2_k": "Q2_K",
        "iq4_xs": "IQ4_XS",
        "iq3_s": "IQ3_S",
        "iq3_xxs": "IQ3_XXS",
        "iq2_s": "IQ2_S",
        "iq2_xs": "IQ2_XS",
        "iq2_xxs": "IQ2_XXS",
    },
    "Dot32": {
        "q8_0": "Q8_0",
        "q5_1": "Q5_1",
        "q5_0": "Q5_0",
        "q4_1": "Q4_1",
        "q4_0": "Q4_0",
        "iq4_nl": "IQ4_NL",
        "mxfp4": "MXFP4",
    },
}
_HEADERS = {"DotFloats": "dot_floats.h", "Dot256": "dot_256.h", "Dot32": "dot_32.h"}

LINEAR_FORMS = tuple(form for forms in _LINEAR_TEMPLATES.values() for form in forms)
"""Names of weight formats that there are kernels for."""

TILE_FORMS = tuple(form.name for form in FORMATS.values() if form.rounding_block)
"""Those whose products with many rows the tensor cores compute: activations are rounded to 8 bits."""


def every_module() -> Iterator[Module]:
    """All that there are."""
    yield Module("rounding", "rounding.h", ("round_rows_256", "round_rows_32"))
    yield Module("norms", "norms.h", ("norm_rows",))
    yield Module("routing", "routing.h", ("route_top_k",))
    yield Module("kv_rows", "kv_rows.h", tuple(f"kv_rows_{form}" for form in KV_WORDS))
    yield from _attention()
    yield Module(
        "sampling",
        "sampling.h",
        ("largest_parts", "largest_join", "weigh_tokens", "cut_tokens", "noisy_parts", "noisy_join"),
    )
    yield Module("swiglu", "swiglu.h", ("swiglu_round_256", "swiglu_round_32", "plain_swiglu"))
    yield Module("received", "received.h", ("widen_rows", "sum_sixteens"))
    yield Module("grouping", "grouping.h", ("group_entries", "set_slots"))
    yield Module("grid", "grid.h", ("add_on_grid",))
    for template, forms in _LINEAR_TEMPLATES.items():
        for form, type_name in forms.items():
            yield _linear_module(form, template, type_name)
    for form in TILE_FORMS:
        yield _tiles_module(form)


def _linear_module(form: str, template: str, type_name: str) -> Module:
    """A form's two kernels: for groups of any size, and for groups of one entry."""
    # Entries at once, and thread blocks of 128 that are to fit a multiprocessor, which bounds the registers.
    kernels = {f"linear_{form}": (8, 3), f"linear_{form}_1": (1, 6)}
    lines = tuple(
        f"KERNEL __launch_bounds__(128, {blocks}) {kernel}(const LinearArgs a) "
        f"{{ linear_group<{template}<{type_name}>, {most}>(a); }}"
        for kernel, (most, blocks) in kernels.items()
    )
    return Module(f"linear_{form}", _HEADERS[template], tuple(kernels), lines)


def _tiles_module(form: str) -> Module:
    """A form's kernel for many rows."""
    kernel = f"tiles_{form}"
    bounds = "__launch_bounds__(TILE_THREADS, TILE_BLOCKS)"
    line = f"KERNEL {bounds} {kernel}(const LinearArgs a) {{ tiles<Tile{form.upper()}>(a); }}"
    return Module(kernel, "tiles.h", (kernel,), (line,))


def _attention() -> Iterator[Module]:
    yield Module("attention_join", "attention_join.h", ("attention_join",))
    for form, word in KV_WORDS.items():
        for heads, groups in ATTENTION_TILES:
            name = f"{form}_{heads}_{groups}"
            yield Module(
                f"attention_{name}",
                "attention.h",
                (f"attention_parts_{name}", f"attention_whole_{name}"),
                (f"ATTENTION_KERNELS({form}, {word}, {heads}, {groups})",),
            )


@cache
def module_of(kernel: str) -> Module:
    """Raises KeyError for a kernel that is none."""
    return {name: module for module in every_module() for name in module.kernels}[kernel]


def headers() -> dict[str, bytes]:
    """All source files by name, as one may include another."""
    return {path.name: path.read_bytes() for path in sorted(SOURCES.glob("*.h"))}
