"""Tables of what was published beside what is predicted, as docs/published.md shows them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from operator import mul
from pathlib import Path
from statistics import median

from benchmarks.published.acceptance import ACCEPTANCE
from benchmarks.published.engine import predicted_tokens_per_s
from benchmarks.published.halves import Judgement
from benchmarks.published.hardware_file import shown
from benchmarks.published.judge import Judged, coverage, median_error, worst_error
from benchmarks.published.measurements import Measurement
from benchmarks.published.models import has_form, has_model
from benchmarks.published.passes import PublishedPasses, predicted_beside_one
from benchmarks.published.shares import FITTED
from placement.errors import InputError
from placement.files.atomic import replacing
from placement.hardware.catalogue import Catalogue
from placement.hardware.spread import Range

_DRAFT_DEVICES = ("m4-max", "dgx-spark", "strix-halo", "rtx-pro-6000-blackwell")


def summary_table(judgement: Judgement, within: Range) -> str:
    """The halves' errors, and how often a measurement lay in the range."""
    rows = [
        f"The range is {within.low:.2f} to {within.high:.2f} of a prediction, from {within.count} "
        f"measurements; {within.covers:.0%} of the next devices' are expected in it.\n",
        "| half | devices | measurements | median error | worst | more than 40% off | in the range |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, half in (
        ("fitting", judgement.fit),
        ("judged", judgement.judged),
        ("fitting, by the other's shares", judgement.swapped),
    ):
        devices = len({one.measurement.first_device for one in half})
        far = sum(abs(one.error) > 0.4 for one in half)
        errors = f"{median_error(half):.1%} | {worst_error(half):.0%} | {far}"
        rows.append(f"| {name} | {devices} | {len(half)} | {errors} | {coverage(half, within):.0%} |")
    return _lines(rows)


def device_table(judgement: Judgement, catalogue: Catalogue) -> str:
    """The median error of each first device, by class."""
    rows = ["| class | device | half | measurements | median error |", "|---|---|---|---|---|"]
    found = []
    for half, ones in (("fitting", judgement.fit), ("judged", judgement.judged)):
        for device in {one.measurement.first_device for one in ones}:
            errors = [one.error for one in ones if one.measurement.first_device == device]
            found.append((catalogue.entry(device).hardware_class, device, half, len(errors), median(errors)))
    rows += [
        f"| {of} | {device} | {half} | {count} | {_signed(error)} |"
        for of, device, half, count, error in sorted(found)
    ]
    return _lines(rows)


def class_table(catalogue: Catalogue) -> str:
    """What the classes reach."""
    rows = ["| class | " + " | ".join(FITTED) + " |", "|---" * (1 + len(FITTED)) + "|"]
    for name, shares in catalogue.classes.items():
        if name not in ("disk", "wired", "wireless"):
            cells = [getattr(shares, figure) for figure in FITTED]
            shown_cells = ["" if cell in (None, 0) else shown(cell) for cell in cells]
            rows.append(f"| {name} | " + " | ".join(shown_cells) + " |")
    return _lines(rows)


def half_table(judged: Sequence[Judged], within: Range) -> str:
    """One row a measurement, sorted by devices."""
    rows = [
        "| measurement | published, tokens/s | predicted | error | in the range |",
        "|---|---|---|---|---|",
    ]
    for one in sorted(judged, key=lambda one: (one.measurement.of_boxes, one.measurement.id)):
        inside = "yes" if within.holds(one.ratio) else "no"
        rows.append(
            f"| {described(one.measurement)} | {one.measurement.decode_tokens_per_s:.3g} "
            f"| {one.predicted_tokens_per_s:.3g} | {_signed(one.error)} | {inside} |"
        )
    return _lines(rows)


def left_out_table(left_out: Sequence[tuple[Measurement, str]]) -> str:
    """What neither half uses, and the rule that says so."""
    rows = ["| measurement | published, tokens/s | rule |", "|---|---|---|"]
    rows += [f"| {described(m)} | {m.decode_tokens_per_s:.3g} | {reason} |" for m, reason in left_out]
    return _lines(rows)


def passes_table(published: Sequence[PublishedPasses], catalogue: Catalogue) -> str:
    """Passes of several rows by one of one row; those of models and forms that models.yaml has."""
    rows = [
        "| device, model | engine | rows | published, by one row | predicted | error |",
        "|---|---|---|---|---|---|",
    ]
    for one in published:
        if not (has_model(one.model) and has_form(one.quant)):
            continue
        predicted = predicted_beside_one(one, catalogue)
        for number, ratio in one.beside_one.items():
            error = predicted[number] / ratio - 1
            name = f"{one.device}, {one.model} {one.quant} | {one.engine}"
            found = f"{ratio:.2f} | {predicted[number]:.2f} | {_signed(error)}"
            rows.append(f"| {name} | {number} | {found} |")
    return _lines(rows)


def draft_table(catalogue: Catalogue) -> str:
    """Step-3.5-Flash with no draft to three, by the acceptance that was published."""
    rows = ["| device | no draft, tokens/s | 1 draft | 2 | 3 | best |", "|---|---|---|---|---|---|"]
    for device in _DRAFT_DEVICES:
        speeds = [predicted_tokens_per_s(_drafted(device, drafts), catalogue) for drafts in range(4)]
        cells = " | ".join(f"{speed:.1f} ({speed / speeds[0]:.2f})" for speed in speeds[1:])
        rows.append(f"| {device} | {speeds[0]:.1f} | {cells} | {speeds.index(max(speeds))} |")
    return _lines(rows)


def _drafted(device: str, drafts: int) -> Measurement:
    """A measurement that nobody made."""
    return Measurement(
        id=f"{device}-{drafts}",
        model="step-3.5-flash",
        quant="IQ4_XS",
        engine="llama.cpp",
        devices=[device],
        split="all",
        context=0,
        drafts=drafts,
        acceptance=list(accumulate(ACCEPTANCE[:drafts], mul)),
        decode_tokens_per_s=1.0,
        source="none",
        url="none",
        quote="none",
    )


def described(measurement: Measurement) -> str:
    """Model, form, devices, split and context in one line."""
    boxes = []
    for box in measurement.of_boxes:
        counts = [(name, box.count(name)) for name in dict.fromkeys(box)]
        boxes.append(" + ".join(name if count == 1 else f"{count} {name}" for name, count in counts))
    parts = [" / ".join(boxes), f"{measurement.model} {measurement.quant}"]
    if measurement.split not in ("all", "layers"):
        parts.append(measurement.split)
    parts.append(measurement.engine)
    if measurement.context:
        parts.append(f"behind {measurement.context:,}")
    if measurement.drafts:
        parts.append(f"{measurement.drafts} draft{'s' if measurement.drafts > 1 else ''}")
    return ", ".join(parts)


def with_part(text: str, name: str, part: str, where: object) -> str:
    """A page with another part between its two comments of this name.

    Raises:
        InputError: the page has no such comments.
    """
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
    before, found, rest = text.partition(begin)
    _, found_end, after = rest.partition(end)
    if not (found and found_end):
        raise InputError(f"{where}: expected the comments {begin.strip()} and {end.strip()} there")
    return before + begin + part + end + after


def write_parts(path: Path, parts: dict[str, str]) -> None:
    """Put parts into a page; raises InputError as `with_part`."""
    text = path.read_text(encoding="utf-8")
    for name, part in parts.items():
        text = with_part(text, name, part, path)
    with replacing(path) as file:
        file.write(text.encode())


def _signed(error: float) -> str:
    """Whole percent; nothing has no sign of its own."""
    return f"{round(error, 2) + 0.0:+.0%}"


def _lines(rows: Sequence[str]) -> str:
    return "\n".join(rows) + "\n"
