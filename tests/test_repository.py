"""What is in the repository stays small and readable: pictures, and the lines of its pages."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PICTURES = (".gif", ".jpeg", ".jpg", ".png", ".svg", ".webp")
MOST_PICTURE_BYTES = 60 * 1024
LONGEST_LINE = 120
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    ROOT / "deploy" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]


def tracked() -> list[Path]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout: git does not tell which files belong to it")
    # A checkout may belong to somebody else, as in a container; listing its files harms nobody.
    command = ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_pictures_are_small_and_those_of_studies_have_their_numbers_beside_them() -> None:
    pictures = [path for path in tracked() if path.suffix in PICTURES]
    large = {str(p): p.stat().st_size for p in pictures if p.stat().st_size > MOST_PICTURE_BYTES}
    assert not large
    of_studies = [path for path in pictures if path.parent == ROOT / "docs" / "studies"]
    assert of_studies
    assert all(path.with_suffix(".csv").is_file() for path in of_studies)


def long_lines(page: str) -> list[int]:
    """Numbers of the lines that are too long, outside tables and code."""
    found, in_code = [], False
    for number, line in enumerate(page.splitlines(), start=1):
        if line.lstrip().startswith("```"):
            in_code = not in_code
        elif not in_code and not line.startswith(("|", "    ")) and len(line) > LONGEST_LINE:
            found.append(number)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_lines_of_pages_are_short(page: Path) -> None:
    assert not long_lines(page.read_text(encoding="utf-8"))


def test_tables_and_code_may_have_long_lines() -> None:
    long = "x" * (LONGEST_LINE + 1)
    assert long_lines(f"| {long} |\n```\n{long}\n```\n    {long}\n") == []
    assert long_lines(f"short\n{long}\n- {long}") == [2, 3]
