"""Forms that weights are kept in: a format's name, its blocks, the bytes of a matrix and of an expert.

The one place that knows them. Matrices are stored row by row, and a row in blocks of neighbouring weights; a
block may hold scales for its weights, so a single weight has no address of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType

from placement.errors import InputError
from placement.files.quote import quote

_SCALE_BYTES = 4


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """One form. A block of `block_weights` neighbours in a row takes `block_bytes`, scales included.

    Attributes:
        rounding_block: kernels round the activations that meet such weights to 8 bits, in blocks of so many
            (docs/arithmetic.md); 0: they do not.
        scale_tile: float32 scales beside the matrix, one for each square of so many rows and columns; 0: no.
    """

    name: str
    block_weights: int
    block_bytes: int
    rounding_block: int = 0
    scale_tile: int = 0

    @property
    def bits(self) -> float:
        """Of a weight, scales included."""
        beside = 8 * _SCALE_BYTES / self.scale_tile**2 if self.scale_tile else 0.0
        return 8 * self.block_bytes / self.block_weights + beside

    def fits(self, columns: int) -> bool:
        """Whether a row of so many weights is whole blocks."""
        return columns % self.block_weights == 0

    def row_bytes(self, columns: int) -> int:
        """Raises InputError where a row is no whole number of blocks."""
        if not self.fits(columns):
            raise InputError(
                f"format {self.name}: expected rows of a multiple of {self.block_weights} weights, "
                f"found {columns}"
            )
        return columns // self.block_weights * self.block_bytes

    def gives(self, wanted: WeightFormat) -> bool:
        """Whether weights stored so can be kept as `wanted`: as they are, or unquantised ones converted."""
        return self == wanted or (self in _PLAIN and wanted in (FLOAT32, BFLOAT16))

    def kept_as(self, wanted: WeightFormat) -> WeightFormat:
        """What memory holds of weights stored so where a run wants `wanted`.

        The kernels widen bfloat16 and float16 exactly, so no run needs a copy of float16, and one in float32
        none of bfloat16.
        """
        as_stored = {FLOAT32: (BFLOAT16, FLOAT16), BFLOAT16: (FLOAT16,)}
        return self if self in as_stored.get(wanted, ()) else wanted

    def matrix_bytes(self, rows: int, columns: int) -> int:
        """Scales included."""
        num_bytes = rows * self.row_bytes(columns)
        if self.scale_tile:
            num_bytes += _SCALE_BYTES * -(-rows // self.scale_tile) * -(-columns // self.scale_tile)
        return num_bytes


@dataclass(frozen=True, slots=True)
class ExpertFormat:
    """The forms of one layer's routed experts: files mix them within an expert, and between layers."""

    gate: WeightFormat
    up: WeightFormat
    down: WeightFormat

    @classmethod
    def of(cls, form: WeightFormat) -> ExpertFormat:
        """All three matrices in one form."""
        return cls(form, form, form)

    @classmethod
    def of_name(cls, name: str) -> ExpertFormat:
        """The form that `name` calls so.

        Raises:
            InputError: a name that the kernels do not know, or not one or three of them.
        """
        forms = [_BY_ANY_NAME.get(part) for part in name.split("/")]
        known = [form for form in forms if form is not None and form.name in FORMATS]
        if len(forms) not in (1, 3) or len(known) != len(forms):
            raise InputError(
                f"experts in {quote(name)}: expected {', '.join(FORMATS)}, or three of them as gate/up/down"
            )
        return cls(*(known if len(known) == 3 else known * 3))

    def gives(self, wanted: ExpertFormat) -> bool:
        """Whether experts stored so can be kept as `wanted`, each matrix by itself."""
        return self.gate.gives(wanted.gate) and self.up.gives(wanted.up) and self.down.gives(wanted.down)

    def kept_as(self, wanted: ExpertFormat) -> ExpertFormat:
        """Of each matrix, see `WeightFormat.kept_as`."""
        return ExpertFormat(
            self.gate.kept_as(wanted.gate), self.up.kept_as(wanted.up), self.down.kept_as(wanted.down)
        )

    @property
    def name(self) -> str:
        """One name where all are alike, else all three in the order gate/up/down."""
        names = (self.gate.name, self.up.name, self.down.name)
        return names[0] if len(set(names)) == 1 else "/".join(names)

    def expert_bytes(self, hidden_size: int, intermediate_size: int) -> int:
        """Of gate and up [intermediate, hidden] and down [hidden, intermediate]."""
        return (
            self.gate.matrix_bytes(intermediate_size, hidden_size)
            + self.up.matrix_bytes(intermediate_size, hidden_size)
            + self.down.matrix_bytes(hidden_size, intermediate_size)
        )


FLOAT32 = WeightFormat("float32", 1, 4)
BFLOAT16 = WeightFormat("bfloat16", 1, 2)
FLOAT16 = WeightFormat("float16", 1, 2)
FP8_E4M3 = WeightFormat("fp8_e4m3", 1, 1, scale_tile=128)
Q8_0 = WeightFormat("q8_0", 32, 34, 32)
Q4_K = WeightFormat("q4_k", 256, 144, 256)

_NVFP4 = WeightFormat("nvfp4", 16, 9)

_PLAIN = (FLOAT32, BFLOAT16, FLOAT16)
# GGML's block types (ggml-org/llama.cpp, ggml/src/ggml-common.h).
_QUANTISED = (
    Q8_0,
    WeightFormat("q6_k", 256, 210, 256),
    WeightFormat("q5_k", 256, 176, 256),
    Q4_K,
    WeightFormat("q3_k", 256, 110, 256),
    WeightFormat("q2_k", 256, 84, 256),
    WeightFormat("q5_1", 32, 24, 32),
    WeightFormat("q5_0", 32, 22, 32),
    WeightFormat("q4_1", 32, 20, 32),
    WeightFormat("q4_0", 32, 18, 32),
    WeightFormat("iq4_nl", 32, 18, 32),
    WeightFormat("iq4_xs", 256, 136, 256),
    WeightFormat("iq3_s", 256, 110, 256),
    WeightFormat("iq3_xxs", 256, 98, 256),
    WeightFormat("iq2_s", 256, 82, 256),
    WeightFormat("iq2_xs", 256, 74, 256),
    WeightFormat("iq2_xxs", 256, 66, 256),
    WeightFormat("mxfp4", 32, 17, 32),
)

FORMATS: Mapping[str, WeightFormat] = MappingProxyType(
    {form.name: form for form in (*_PLAIN, FP8_E4M3, *_QUANTISED)}
)
"""What the kernels compute with, by name."""

# What plans are made for by name where no file says what is in it. The GGUF block formats count their scales:
# Q4_K has 4.5 bits in all. NVFP4 has one byte for 16 weights.
PLANNED_FORMATS: Mapping[str, WeightFormat] = MappingProxyType(
    {
        "float32": FLOAT32,
        "bfloat16": BFLOAT16,
        "q8": Q8_0,
        "fp8": FP8_E4M3,
        "q6": FORMATS["q6_k"],
        "q5": FORMATS["q5_k"],
        "q4": FORMATS["q4_k"],
        "nvfp4": _NVFP4,
        "q3": FORMATS["q3_k"],
        "q2": FORMATS["q2_k"],
    }
)


# A format goes by its own name too: files say q8_0 where people say q8.
_BY_ANY_NAME: Mapping[str, WeightFormat] = MappingProxyType(
    {**{form.name: form for form in PLANNED_FORMATS.values()}, **FORMATS, **PLANNED_FORMATS}
)


def planned_format(name: str) -> WeightFormat:
    """Raises InputError for an unknown name, listing the known ones."""
    try:
        return _BY_ANY_NAME[name.lower()]
    except KeyError:
        meant = _meant(name.lower())
        question = "" if meant is None else f" (is {meant} meant?)"
        raise InputError(
            f"quantisation {quote(name)}{question}: expected {', '.join(PLANNED_FORMATS)}"
        ) from None


def _meant(name: str) -> str | None:
    """The form whose name begins an unknown one, as GGUF files' types such as q4_k_s do, or comes near it."""
    begins = [key for key in PLANNED_FORMATS if name.startswith(key)]
    near = begins or get_close_matches(name, PLANNED_FORMATS, 1)
    return near[0] if near else None


def planned_experts(name: str) -> ExpertFormat:
    """Experts in a form that plans name, or in three of them as gate/up/down.

    Raises:
        InputError: an unknown name, or two or more than three.
    """
    forms = [planned_format(part) for part in name.split("/")]
    if len(forms) not in (1, 3):
        raise InputError(f"experts in {quote(name)}: expected one form, or three of them as gate/up/down")
    return ExpertFormat(*(forms if len(forms) == 3 else forms * 3))


# Published files of these forms quantise nothing but the routed experts.
_EXPERTS_ONLY = (FP8_E4M3, _NVFP4)
# GGUF files go below 4.5 bits by their experts; attention and the output keep about as many.
_FEWEST_HEAD_BITS = 4.5


def head_bits_of(quant: str) -> float:
    """Bits of each of the head's own weights in published files whose experts are in `quant`.

    Unquantised files have one form for all. FP8 and NVFP4 checkpoints keep the head in bfloat16. GGUF files
    quantise it too, about as much as the experts.

    Raises:
        InputError: an unknown name.
    """
    form = planned_format(quant)
    return BFLOAT16.bits if form in _EXPERTS_ONLY else max(form.bits, _FEWEST_HEAD_BITS)


def run_dtype_of(form: str) -> str:
    """What the head computes with where experts are kept in `form`: float32, or bfloat16."""
    return FLOAT32.name if form.lower() == FLOAT32.name else BFLOAT16.name
