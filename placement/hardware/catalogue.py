"""Reads the catalogue and what classes of devices reach, both packaged beside this module."""

from __future__ import annotations

from difflib import get_close_matches
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from placement.errors import HardwareFileError
from placement.fields.yaml_file import read_mapping, validate_fields
from placement.files.quote import quote
from placement.hardware.entry import CLASSES, ClassShares, Entry

CATALOGUE = Path(__file__).parent / "catalogue.yaml"
REACHED = Path(__file__).parent / "reached.yaml"
_MOST_NEAR = 3
_LEAST_TITLED = 4


class _CatalogueModel(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    hardware: list[Entry]


class Catalogue:
    """All entries by name, and the shares of their classes."""

    def __init__(self, entries: dict[str, Entry], classes: dict[str, ClassShares]) -> None:
        self.entries = entries
        self.classes = classes

    def entry(self, name: object) -> Entry:
        """The entry of this name; raises ValueError, with names that are near, where there is none."""
        found = self.entries.get(name) if isinstance(name, str) else None
        if found is None:
            raise ValueError(f"unknown hardware {quote(name)}: {self._near(name)}")
        return found

    def shares_of(self, entry: Entry) -> ClassShares:
        return self.classes[entry.hardware_class]

    def _near(self, name: object) -> str:
        close = get_close_matches(str(name).lower().replace(" ", "-"), self.entries, _MOST_NEAR, cutoff=0.5)
        near = list(dict.fromkeys([*self._titled(str(name)), *close]))[:_MOST_NEAR]
        meant = f"is {' or '.join(near)} meant? " if near else ""
        return f"{meant}`potluck hardware` lists what is known"

    def _titled(self, text: str) -> list[str]:
        """Entries whose title has the text, as people call a product by its chip: gb10."""
        asked = _letters(text)
        if len(asked) < _LEAST_TITLED:
            return []
        return [entry.name for entry in self.entries.values() if asked in _letters(entry.title)]


def read_catalogue(catalogue: Path = CATALOGUE, reached: Path = REACHED) -> Catalogue:
    """Read and check both files.

    Raises:
        HardwareFileError: names file, field, what was expected and what was found.
    """
    document = read_mapping(catalogue, HardwareFileError, "hardware")
    file = validate_fields(document, _CatalogueModel, catalogue, HardwareFileError)
    entries: dict[str, Entry] = {}
    for index, entry in enumerate(file.hardware):
        if entry.name in entries:
            raise HardwareFileError(f"{catalogue}: hardware[{index}].name: {quote(entry.name)} again")
        entries[entry.name] = entry
    return Catalogue(entries, _read_classes(reached))


def _letters(text: str) -> str:
    """Letters and digits alone, which do not depend on how somebody writes a name."""
    return "".join(character for character in text.lower() if character.isalnum())


@cache
def packaged_catalogue() -> Catalogue:
    """The one that comes with Potluck, read once."""
    return read_catalogue()


def _read_classes(path: Path) -> dict[str, ClassShares]:
    document = read_mapping(path, HardwareFileError, "a key for each class")
    if set(document) != set(CLASSES):
        wrong = sorted(map(str, set(document) ^ set(CLASSES)))
        raise HardwareFileError(f"{path}: {wrong[0]}: expected just the classes {', '.join(CLASSES)}")
    found: dict[str, ClassShares] = {}
    for name in CLASSES:
        shares = validate_fields(document[name], ClassShares, path, HardwareFileError, name)
        for figure in shares.assumed:
            if figure not in ClassShares.model_fields:
                raise HardwareFileError(
                    f"{path}: {name}.assumed: expected names of figures, found {quote(figure)}"
                )
        found[name] = shares
    return found
