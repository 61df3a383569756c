"""Values of a cluster file's fields: what each may be, and what to say of what it may not be.

Whoever leaves out a unit, or takes another one, is asked what was meant.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, StringConstraints

from placement.files.quote import quote
from placement.units import size

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
"""Of nodes, devices and clusters: they become names of files, resources and workers."""
# As ssh takes it: never the beginning of an option.
USER_PATTERN = r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$"
MOST_NAME = 64

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
# Beyond it, and below its inverse, nothing is for sale, and times would overflow.
_MOST = 1e18
# Less memory without a unit, slower links and faster devices than these are figures in another unit.
_LEAST_BYTES = 10**6
_MOST_ROUND_TRIP_S = 0.2
_MOST_GBYTES_PER_S = 20_000
_MOST_GBITS_PER_S = 10_000
_MOST_GFLOPS = 10_000_000
_MOST_ROWS = 65_536
_MOST_PATH = 4096


def parse_size(value: object) -> int:
    """Bytes from a number or text such as 24GB or 64GiB; raises ValueError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?i?B)?", str(value).strip(), re.IGNORECASE)
    if isinstance(value, bool) or match is None:
        raise ValueError(f"expected bytes or a size such as 24GB or 64GiB, found {quote(value)}")
    num_bytes = float(match[1]) * _UNITS[(match[2] or "").upper()]
    if num_bytes > _MOST:
        raise ValueError(f"expected a size of memory that exists, found {quote(value)}")
    return round(num_bytes)


def parse_address(value: object) -> str:
    """The IPv4 address of one box; raises ValueError for anything else."""
    text = str(value).strip()
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise ValueError(f"expected an IPv4 address such as 192.168.1.11, found {quote(value)}") from None
    if address.version != 4:
        raise ValueError(f"expected an IPv4 address such as 192.168.1.11, found IPv6: {quote(value)}")
    if address.is_unspecified or address.is_multicast or text == "255.255.255.255":
        raise ValueError(f"expected the address of one box, found {quote(value)}")
    return text


def _memory(value: object) -> int:
    """Like `parse_size`, and no figure whose unit was left out: 128 for 128GB."""
    num_bytes = parse_size(value)
    text = str(value).strip()
    if not text[-1].isalpha() and 0 < float(text) < _LEAST_BYTES:
        unit = "GB" if num_bytes < 1000 else "MB"
        raise ValueError(
            f"expected a size such as 24GB or 64GiB, found {quote(value)}, which is {size(num_bytes)}: is "
            f"{text}{unit} meant?"
        )
    return num_bytes


def _round_trip(value: object) -> float:
    seconds = _not_negative(value)
    if seconds > _MOST_ROUND_TRIP_S:
        raise ValueError(
            f"expected seconds, at most {_MOST_ROUND_TRIP_S}, found {quote(value)}: are {seconds:g} ms "
            f"meant? Then write {seconds / 1000:g}"
        )
    return seconds


def _at_most(most: float, unit: str, smaller: str) -> BeforeValidator:
    """A positive number in `unit` that something can have."""

    def check(value: object) -> float:
        number = _positive(value)
        if number > most:
            raise ValueError(
                f"expected {unit}, at most {most:,}, found {quote(value)}: is it in {smaller}? "
                f"Then write {number / 1000:g}"
            )
        return number

    return BeforeValidator(check)


def _positive(value: object) -> float:
    number = _number(value)
    if number <= 0:
        raise ValueError(f"expected a number above 0, found {quote(value)}")
    if number < 1 / _MOST:
        raise ValueError(f"expected a number of at least {1 / _MOST:g}, found {quote(value)}")
    return number


def _not_negative(value: object) -> float:
    number = _number(value)
    if number < 0:
        raise ValueError(f"expected a number of at least 0, found {quote(value)}")
    return number


def _number(value: object) -> float:
    # YAML 1.1 reads 3e-4 (without a dot) as text; a reader of the file sees a number.
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise ValueError(f"expected a number, found {quote(value)}") from None
    if not isinstance(value, int | float) or isinstance(value, bool) or value != value:
        raise ValueError(f"expected a number, found {quote(value)}")
    if abs(value) > _MOST:
        raise ValueError(f"expected a number of at most {_MOST:g}, found {quote(value)}")
    return float(value)


def _rows(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _MOST_ROWS:
        raise ValueError(f"expected a number of rows, 1 to {_MOST_ROWS:,}, found {quote(value)}")
    return value


def _row_costs(value: dict[int, float]) -> dict[int, float]:
    costs = [1.0, *(value[rows] for rows in sorted(value))]
    if 1 in value:
        raise ValueError("expected rows from 2 on, since a pass of 1 row is what others are compared with")
    if costs != sorted(costs):
        raise ValueError("expected passes of more rows to take at least as long, 1 at the least")
    return value


def _remote_path(value: object) -> str:
    if not isinstance(value, str) or not value.startswith(("/", "~/")) or not value.isprintable():
        raise ValueError(f"expected a path that begins with / or ~/, found {quote(value)}")
    if len(value) > _MOST_PATH:
        raise ValueError(f"expected a path of at most {_MOST_PATH} characters, found {quote(value)}")
    return value


def _port(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 65_535:
        raise ValueError(f"expected a port, 1 to 65535, found {quote(value)}")
    return value


Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN, max_length=MOST_NAME)]
Memory = Annotated[int, BeforeValidator(_memory)]
RoundTrip = Annotated[float, BeforeValidator(_round_trip)]
GbytesPerS = Annotated[float, _at_most(_MOST_GBYTES_PER_S, "GB/s", "MB/s")]
GbitsPerS = Annotated[float, _at_most(_MOST_GBITS_PER_S, "Gbit/s", "Mbit/s")]
Gflops = Annotated[float, _at_most(_MOST_GFLOPS, "GFLOP/s", "MFLOP/s")]
Positive = Annotated[float, BeforeValidator(_positive)]
NotNegative = Annotated[float, BeforeValidator(_not_negative)]
Rows = Annotated[int, BeforeValidator(_rows)]
RowCostsField = Annotated[dict[Rows, Positive], AfterValidator(_row_costs)]
"""Passes of a few rows beside one of a single row: rows, 2 at the least -> times as long."""
Number = Annotated[float, BeforeValidator(_number)]
Address = Annotated[str, BeforeValidator(parse_address)]
RemotePath = Annotated[str, BeforeValidator(_remote_path)]
Port = Annotated[int, BeforeValidator(_port)]
User = Annotated[str, StringConstraints(pattern=USER_PATTERN, max_length=MOST_NAME)]
Text = Annotated[str, StringConstraints(min_length=1, max_length=MOST_NAME)]
