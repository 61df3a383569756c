"""A study's figure can be drawn again from the numbers beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

ROWS = [
    {"policy": "lru", "share": 0.1, "moe_ms": 37.123456789, "copies": 0},
    {"policy": "opt", "share": 0.25, "moe_ms": 4.0, "copies": 12},
]


# All processes collect these tests. matplotlib is loaded by the one that runs them.


def save(rows: list[dict[str, object]], name: str) -> None:
    import matplotlib.pyplot as plt

    from benchmarks.studies import figures

    figure, panel = plt.subplots(figsize=(3, 2))
    panel.plot([row["share"] for row in rows], [row["moe_ms"] for row in rows])
    figures.save(figure, rows, name)


def test_rows_read_back_give_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.studies import figures

    monkeypatch.setattr(figures, "GALLERY", tmp_path)
    save(ROWS, "first")
    rows = figures.read_rows("first")
    assert rows[0] == {"policy": "lru", "share": 0.1, "moe_ms": 37.1235, "copies": 0}
    save(rows, "again")
    for suffix in (".png", ".csv"):
        first = (tmp_path / "first").with_suffix(suffix)
        assert first.read_bytes() == (tmp_path / "again").with_suffix(suffix).read_bytes()


def test_every_figure_of_the_gallery_can_be_redrawn() -> None:
    from benchmarks.studies import figures, redraw

    assert set(redraw.FIGURES) == {path.stem for path in figures.GALLERY.glob("*.png")}
    assert set(redraw.FIGURES) == {path.stem for path in figures.GALLERY.glob("*.csv")}
