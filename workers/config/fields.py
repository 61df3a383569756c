"""Typed, bounded access to the fields of config.json; every complaint names the file and the field."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from placement.errors import CheckpointError
from placement.files.quote import quote

MOST_INTEGER = 2**31 - 1


class Fields:
    """An object of config.json. It notes which of its keys were asked for, so that `finish` finds the others.

    An absent field and null are the same. `spelled`: what a file of another kind calls a field, for messages.
    """

    def __init__(
        self,
        path: str,
        values: Mapping[str, Any],
        prefix: str = "",
        spelled: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.path = path
        self._values = values
        self._prefix = prefix
        self._spelled = spelled
        self._read: set[str] = set()

    def wrong(self, name: str, found: Any, expected: str) -> CheckpointError:
        """The error that field `name` has the value `found`, for the caller to raise."""
        # An entry of a list can be null; a field that is null is one that is not there.
        said = "missing" if found is None and "[" not in name else quote(found)
        return CheckpointError(f"{self.path}: {self.spelled(name)} is {said}, expected {expected}")

    def spelled(self, name: str) -> str:
        """What the file calls field `name`, with or without an index behind it."""
        field, bracket, index = f"{self._prefix}{name}".partition("[")
        return f"{self._spelled.get(field, field)}{bracket}{index}"

    def get(self, *names: str) -> Any:
        """The value under any of a field's spellings, None where there is none.

        Raises:
            CheckpointError: two spellings that disagree.
        """
        self._read.update(names)
        given = {name: self._values[name] for name in names if self._values.get(name) is not None}
        if not given:
            return None
        (first, value), *others = given.items()
        for name, other in others:
            if other != value:
                raise self.wrong(
                    name,
                    other,
                    f"what {self._prefix}{first} says, {quote(value)}: remove the wrong one of the two",
                )
        return value

    def integer(
        self, *names: str, default: int | None = None, least: int = 1, most: int = MOST_INTEGER
    ) -> int:
        value = self.get(*names)
        if value is None and default is not None:
            return default
        return self.check_integer(names[0], value, least, most)

    def check_integer(self, name: str, value: Any, least: int, most: int = MOST_INTEGER) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise self.wrong(name, value, f"an integer of at least {least}")
        if value > most:
            raise self.wrong(name, value, f"at most {most}, far above any model there is")
        return value

    def number(self, name: str, default: float | None = None, *, positive: bool = False) -> float:
        value = self.get(name)
        if value is None and default is not None:
            return default
        return self.check_number(name, value, positive=positive)

    def check_number(self, name: str, value: Any, *, positive: bool = False) -> float:
        expected = "a number above 0" if positive else "a number, 0 or larger"
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(name, value, expected)
        try:
            number = float(value)
        except OverflowError:
            raise self.wrong(name, value, expected) from None
        if not math.isfinite(number) or number < 0 or (positive and number == 0):
            raise self.wrong(name, value, expected)
        return number

    def flag(self, name: str) -> bool | None:
        """None where the file does not say."""
        value = self.get(name)
        if value is not None and not isinstance(value, bool):
            raise self.wrong(name, value, "true or false")
        return value

    def only(self, name: str, *allowed: Any) -> None:
        """Refuse a setting of another model; absent means the first of `allowed`."""
        value = self.get(name)
        # 0 and 1 equal false and true in Python, but one is not written for the other.
        if value is not None and not any(type(value) is type(one) and value == one for one in allowed):
            raise self.wrong(name, value, f"{' or '.join(map(repr, allowed))}: Potluck computes nothing else")

    def inner(self, name: str) -> Fields | None:
        """The object in field `name`, None where there is none or an empty one."""
        value = self.get(name)
        if value is not None and not isinstance(value, dict):
            raise self.wrong(name, value, "an object or null")
        return Fields(self.path, value, f"{self._prefix}{name}.", self._spelled) if value else None

    def names(self) -> list[str]:
        """Keys with a value."""
        return [name for name, value in self._values.items() if value is not None]

    def per_layer(self, name: str, num_trunk: int, num_mtp: int) -> list[Any] | None:
        """One entry a layer, from a list or one value for all; None where the file does not say.

        A list as long as the trunk is fine: the MTP layers' entries then come from the field `mtp_` + name,
        and are None without that.
        """
        value, tail = self.get(name), self.get(f"mtp_{name}")
        num_layers = num_trunk + num_mtp
        if tail is not None and not (isinstance(tail, list) and len(tail) >= num_mtp):
            raise self.wrong(f"mtp_{name}", tail, f"a list of {num_mtp} entries, one for each MTP layer")
        if value is None:
            return None
        if not isinstance(value, list):
            return [value] * num_layers
        if len(value) >= num_layers:
            if tail is not None and tail[:num_mtp] != value[num_trunk:num_layers]:
                raise self.wrong(
                    f"mtp_{name}", tail, f"what {name} says of the MTP layers: remove the wrong one"
                )
            return value[:num_layers]
        if len(value) != num_trunk:
            raise self.wrong(
                name,
                value,
                f"{num_trunk} entries ({self.spelled('num_hidden_layers')}) or {num_layers} (with "
                f"{self.spelled('num_nextn_predict_layers')}), found {len(value)}",
            )
        return value + (tail[:num_mtp] if tail is not None else [None] * num_mtp)

    def agree(self, spellings: Sequence[tuple[str, Sequence[Any] | None]]) -> list[Any] | None:
        """One list out of several that say the same of each layer; None where none of them is given.

        Args:
            spellings: (name, one entry a layer). An entry of None says nothing.

        Raises:
            CheckpointError: two of them disagree about a layer.
        """
        given = [(name, values) for name, values in spellings if values is not None]
        if not given:
            return None
        first, merged = given[0][0], list(given[0][1])
        for name, values in given[1:]:
            for layer, value in enumerate(values):
                if merged[layer] is None:
                    merged[layer] = value
                elif value is not None and value != merged[layer]:
                    raise self.wrong(
                        name,
                        value,
                        f"what {first} says of layer {layer}, {quote(merged[layer])}: remove the wrong one",
                    )
        return merged

    def finish(self, harmless: Iterable[str] = ()) -> None:
        """Refuse a key that nobody asked for and that is not known to be harmless.

        Raises:
            CheckpointError: names the first such key.
        """
        known = self._read | set(harmless)
        for name in self.names():
            if name not in known:
                raise CheckpointError(
                    f"{self.path}: {quote(self._prefix + name)} is {quote(self._values[name])}: Potluck "
                    "does not know this key, and the numbers may depend on it; remove it if you know that "
                    "it has no effect"
                )
