"""`potluck probe`: measure what boxes and links can do, for plans and predictions."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.options import Json
from orchestrator.cli.output import console, errors, print_error, print_json, print_note, table
from orchestrator.cluster.launcher_file import load_launcher
from orchestrator.cluster.ssh import Ssh
from orchestrator.probe.boxes import ProbedBox, boxes_of, this_machine
from orchestrator.probe.cluster import fingerprints, probe_cluster
from orchestrator.probe.findings import findings
from placement.errors import InputError, PotluckError
from placement.given.probe import HERE, probe_path, probe_path_here, read_probe, write_probe
from placement.given.probe_figures import FormRate, Gpu, Node, Probe
from placement.units import size
from placement.weight_format import FORMATS


def probe(
    cluster: Annotated[
        Path | None,
        typer.Argument(help="Cluster file; left out, this machine alone is measured.", metavar="[CLUSTER]"),
    ] = None,
    forms: Annotated[
        str,
        typer.Option(
            help="Forms of weights to time, with commas; default bfloat16 and the usual of GGUF files."
        ),
    ] = "",
    folder: Annotated[
        Path | None, typer.Option(help="Without a cluster file: folder or file on the disk to measure.")
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Measure although nothing has changed.")] = False,
    json: Json = False,
) -> None:
    """Measure what boxes and links can do; plans use the figures from then on."""
    names = [name for name in forms.split(",") if name]
    for name in names:
        if name not in FORMATS:
            raise InputError(f"--forms {name!r}: expected some of {', '.join(FORMATS)}")
    if cluster is not None and folder is not None:
        raise InputError("--folder: in a cluster the file says where each box has the model; leave it out")
    if folder is not None and not folder.exists():
        raise InputError(f"--folder {folder}: no such folder or file")
    with ExitStack() as stack:
        if cluster is None:
            boxes: Sequence[ProbedBox] = (this_machine(folder),)
            head, where = HERE, probe_path_here()
        else:
            launcher = load_launcher(cluster)
            boxes, head = boxes_of(launcher, stack.enter_context(Ssh())), launcher.spec.head
            where = probe_path(cluster)
        earlier = _earlier(where, again=again)
        before = None if again else earlier
        reason = "" if before is None else why_again(before, boxes, head, names)
        failed: dict[str, str] = {}
        took: dict[str, float] = {}
        if before is not None and not reason:
            found = before
        else:
            if reason:
                print_note(f"measuring again: {reason}")
            with _shown([box.name for box in boxes]) as tell:
                probed = probe_cluster(boxes, head, names, tell)
            found, failed = with_earlier(probed.probe, earlier, probed.failed), dict(probed.failed)
            took = {"start_seconds": probed.start_s, "seconds": probed.seconds}
            write_probe(found, where)
    if json:
        print_json(
            {"file": str(where), "failed": failed, "findings": findings(found)} | took | found.model_dump()
        )
    else:
        _print(found)
    for line in failed.values():
        print_error(line)
    if found is before:
        print_note(f"as probed on {found.date[:10]}; nothing has changed (--again measures anew)")
    else:
        print_note(
            f"wrote {where}: measured in {took['seconds']:.1f} s, of which {took['start_seconds']:.1f} s "
            "until Python had started everywhere"
        )
    if failed:
        raise typer.Exit(1)


def _earlier(where: Path, *, again: bool) -> Probe | None:
    """What was probed before; with `again`, a file that cannot be read is as none."""
    try:
        return read_probe(where) if where.exists() else None
    except PotluckError:
        if not again:
            raise
        return None


def with_earlier(found: Probe, earlier: Probe | None, failed: Collection[str]) -> Probe:
    """`found`, and of boxes that `failed` now what an earlier probe of the same head knew of them."""
    if earlier is None or earlier.head != found.head:
        return found
    nodes = {name: node for name, node in earlier.nodes.items() if name in failed}
    links = {name: link for name, link in earlier.links.items() if name in failed}
    return found.model_copy(update={"nodes": nodes | found.nodes, "links": links | found.links})


def why_again(before: Probe, boxes: Sequence[ProbedBox], head: str, forms: Sequence[str]) -> str:
    """Why a probe no longer holds; "" where it does. A box that does not answer is no reason."""
    if before.head != head:
        return f"the head was {before.head}"
    for box in boxes:
        if box.name not in before.nodes:
            return f"{box.name} was not measured"
        if missing := set(forms) - {rate.form for rate in before.nodes[box.name].kernels}:
            return f"{min(missing)} was not measured"
        if box.name != head and box.name not in before.links:
            return f"the link to {box.name} was not measured"
    now, _ = fingerprints(boxes)
    for name, fingerprint in now.items():
        if fingerprint != before.nodes[name].hardware.fingerprint:
            return f"hardware or versions of {name} have changed"
    return ""


@contextmanager
def _shown(names: Sequence[str]) -> Iterator[Callable[[str, str], None]]:
    """What every box measures now, on standard error; one line where nobody watches a terminal."""
    doing = dict.fromkeys(names, "starting")
    if not errors.is_interactive:
        print_note(f"measuring {', '.join(names)}: some 20 s, more where other work runs")
        yield doing.__setitem__
        return
    with errors.status("measuring") as status:

        def tell(name: str, what: str) -> None:
            doing[name] = what
            status.update("; ".join(f"{box}: {text}" for box, text in doing.items()))

        yield tell


def _print(found: Probe) -> None:
    nodes = found.nodes
    rows = [
        _row("cores", nodes, lambda n: f"{n.hardware.cores} {n.instruction_set}"),
        _row("memory free", nodes, lambda n: size(n.condition.free_bytes)),
        _row("of", nodes, lambda n: size(n.hardware.memory_bytes)),
    ]
    for threads in sorted({rate.threads for node in nodes.values() for rate in node.reads}):
        rows.append(
            _row(
                f"reads, {threads} thread{'' if threads == 1 else 's'}, GB/s",
                nodes,
                partial(_read, threads=threads),
            )
        )
    for form in dict.fromkeys(rate.form for node in nodes.values() for rate in node.kernels):
        for many, what in ((False, "one row"), (True, "prompt")):
            label = f"{form}, {what}, GFLOP/s"
            rows.append(_row(label, nodes, partial(_rate, form=form, last=many)))
    rows.append(_row("disk, GB/s", nodes, lambda n: f"{n.disk.bytes_per_s / 1e9:.2f}" if n.disk else "-"))
    rows.append(_row("encryption, µs a message", nodes, _encryption))
    console.print(table(f"probed {found.date[:16]}", ("", *nodes), rows))
    cards = {f"{name} {gpu.device}".strip(): gpu for name, node in nodes.items() for gpu in node.gpus}
    if cards:
        console.print(table("cards", ("", *cards), _card_rows(list(cards.values()))))
    if found.links:
        lines = [
            (
                name,
                f"{link.p50_s * 1e3:.2f}",
                f"{link.p99_s * 1e3:.2f}",
                f"{link.there_bytes_per_s * 8e-9:.2f}",
                f"{link.back_bytes_per_s * 8e-9:.2f}",
            )
            for name, link in found.links.items()
        ]
        heading = (f"link from {found.head}", "round trip ms", "p99 ms", "there Gbit/s", "back Gbit/s")
        console.print(table("links, encrypted", heading, lines))
    for sentence in findings(found):
        print_note(sentence)


def _row(label: str, nodes: dict[str, Node], cell: Callable[[Node], str]) -> tuple[str, ...]:
    return label, *(cell(node) for node in nodes.values())


def _read(node: Node, *, threads: int) -> str:
    return next((f"{rate.bytes_per_s / 1e9:.1f}" for rate in node.reads if rate.threads == threads), "-")


def _rate(node: Node, *, form: str, last: bool) -> str:
    return _kernel_rate(node.kernels, form=form, last=last)


def _kernel_rate(kernels: Sequence[FormRate], *, form: str, last: bool) -> str:
    rates = next((rate.flops_per_s for rate in kernels if rate.form == form), None)
    return "-" if rates is None else f"{rates[-1 if last else 0] / 1e9:.1f}"


def _card_rows(cards: Sequence[Gpu]) -> list[tuple[str, ...]]:
    """A column for each card."""

    def row(label: str, cell: Callable[[Gpu], str]) -> tuple[str, ...]:
        return label, *map(cell, cards)

    rows = [
        row("model", lambda gpu: gpu.name),
        row("memory free", lambda gpu: size(gpu.free_bytes)),
        row("of", lambda gpu: size(gpu.memory_bytes)),
        row("copies within it, GB/s", lambda gpu: _gbytes(gpu.bandwidth_bytes_per_s)),
        row("from RAM, page-locked, GB/s", lambda gpu: _gbytes(gpu.copy_bytes_per_s)),
        row("from RAM, pageable, GB/s", lambda gpu: _gbytes(gpu.pageable_bytes_per_s)),
        row("to RAM, page-locked, GB/s", lambda gpu: _gbytes(gpu.back_bytes_per_s)),
        row("to RAM, pageable, GB/s", lambda gpu: _gbytes(gpu.pageable_back_bytes_per_s)),
        row("there and back, µs", lambda gpu: f"{gpu.round_trip_s * 1e6:.0f}" if gpu.round_trip_s else "-"),
    ]
    for form in dict.fromkeys(rate.form for gpu in cards for rate in gpu.kernels):
        for many, what in ((False, "one row"), (True, "prompt")):
            rates = (_kernel_rate(gpu.kernels, form=form, last=many) for gpu in cards)
            rows.append((f"{form}, {what}, GFLOP/s", *rates))
    return rows


def _gbytes(bytes_per_s: float | None) -> str:
    return "-" if bytes_per_s is None else f"{bytes_per_s / 1e9:.1f}"


def _encryption(node: Node) -> str:
    return f"{max(0.0, node.encrypted.round_trip_s - node.plain.round_trip_s) * 1e6:.0f}"
