"""Three kinds of freely licensed text from Debian packages, split by document."""

from __future__ import annotations

import gzip
import hashlib
import re
import struct
import subprocess
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

DOMAINS = ("python", "prose", "technical")
HELD_OUT_PERCENT = 5
MIN_BYTES, MAX_BYTES = 300, 400_000


@dataclass(frozen=True, slots=True)
class Document:
    """One text and where it is from; the name decides its split."""

    domain: str
    name: str
    text: str

    @property
    def held_out(self) -> bool:
        """Whether the document is kept from training: a fixed hash of its name says so."""
        return self.rank % 100 < HELD_OUT_PERCENT

    @property
    def rank(self) -> int:
        """A pseudo-random order of documents that never changes."""
        return int.from_bytes(hashlib.sha256(f"{self.domain}/{self.name}".encode()).digest()[:6], "big")


@dataclass(frozen=True, slots=True)
class Source:
    """A Debian package, its licence and how to read it."""

    domain: str
    package: str
    licence: str
    read: Callable[[Path], Iterator[tuple[str, str]]]


def fetch(package: str, folder: Path) -> Path:
    """Downloads and unpacks a Debian package without installing it.

    Args:
        package: its name; the configured archive's version is taken.
        folder: where the .deb and its contents go.

    Returns:
        The folder of its contents.
    """
    root = folder / package
    if not root.exists():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", "-q", package], cwd=folder, check=True, capture_output=True)
        (archive,) = folder.glob(f"{package}_*.deb")
        partial = folder / f"{package}.partial"
        subprocess.run(["dpkg-deb", "-x", str(archive), str(partial)], check=True)
        partial.rename(root)
    return root


def version(package: str, folder: Path) -> str:
    """The version of a fetched package, from its archive's name."""
    (archive,) = folder.glob(f"{package}_*.deb")
    return archive.name.split("_")[1].replace("%3a", ":")


class _Text(HTMLParser):
    """Visible text of a page, paragraphs apart, preformatted text as it is."""

    SILENT = frozenset({"script", "style", "head", "svg", "nav"})
    LINES = frozenset({"br", "li", "tr", "dt", "dd"})
    BREAKS = LINES | {"p", "div", "h1", "h2", "h3", "h4", "table", "ul", "ol", "pre"}

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.silent = self.verbatim = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in self.SILENT:
            self.silent += 1
        elif tag in self.BREAKS:
            self.parts.append("\n" if tag in self.LINES else "\n\n")
        if tag == "pre":
            self.verbatim += 1

    def handle_endtag(self, tag: str) -> None:
        if tag in self.SILENT:
            self.silent = max(0, self.silent - 1)
        elif tag in self.BREAKS:
            self.parts.append("\n")
        if tag == "pre":
            self.verbatim = max(0, self.verbatim - 1)

    def handle_data(self, data: str) -> None:
        if not self.silent:
            self.parts.append(data if self.verbatim else re.sub(r"\s+", " ", data))


def html_text(page: str) -> str:
    """The visible text of an HTML page."""
    parser = _Text()
    parser.feed(re.sub(r'<div class="nav(header|footer)">.*?</div>', "", page, flags=re.DOTALL))
    lines = [line.rstrip() for line in "".join(parser.parts).split("\n")]
    lines = [line[1:] if re.match(r" \S", line) else line for line in lines]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


def _html_pages(root: Path) -> Iterator[tuple[str, str]]:
    pages = {}
    for path in sorted(root.rglob("*.html")):
        if "crossref" not in path.name and path.name not in ("requirements.html", "bookindex.html"):
            pages[path.name] = html_text(path.read_text(errors="replace")).split("\n")
    # Navigation and footers repeat from page to page; what is said once is content.
    seen = Counter(line for lines in pages.values() for line in set(lines) if line.strip())
    common = {line for line, count in seen.items() if count > 0.04 * len(pages)}
    for name, lines in pages.items():
        text = "\n".join(line for line in lines if line not in common)
        yield name, re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _python_files(root: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(root.rglob("*.py")):
        name = str(path.relative_to(root)).split("/python3", 1)[-1].split("/", 1)[-1]
        if not path.is_symlink() and not name.startswith(("encodings/", "test/", "pydoc_data/")):
            yield name, path.read_text(errors="replace")


def _novels(root: Path) -> Iterator[tuple[str, str]]:
    (database,) = root.rglob("data/Rdata.rdb")
    data, offset = database.read_bytes(), 0
    while offset < len(data):
        stream = zlib.decompressobj()
        lines = list(_r_strings(stream.decompress(data[offset + 4 :])))
        offset = len(data) - len(stream.unused_data)
        chapters: list[list[str]] = [[]]
        for line in lines:
            if re.match(r"(CHAPTER|Chapter) ", line):
                chapters.append([])
            chapters[-1].append(line)
        for number, chapter in enumerate(chapters):
            yield f"{lines[0].lower()}/{number}", "\n".join(chapter).strip() + "\n"


def _r_strings(serialized: bytes) -> Iterator[str]:
    """Strings of one character vector in R's XDR serialization (version 3)."""
    native = struct.unpack_from(">i", serialized, 14)[0]
    flags, count = struct.unpack_from(">ii", serialized, 18 + native)
    if flags & 0xFF != 16:
        raise ValueError(f"expected an R character vector (type 16), found type {flags & 0xFF}")
    offset = 26 + native
    for _ in range(count):
        length = struct.unpack_from(">i", serialized, offset + 4)[0]
        yield serialized[offset + 8 : offset + 8 + max(0, length)].decode()
        offset += 8 + max(0, length)


def _devils_dictionary(root: Path) -> Iterator[tuple[str, str]]:
    (path,) = root.rglob("devil.dict.dz")
    text = gzip.decompress(path.read_bytes()).decode("latin-1")
    entries = re.split(r"\n(?=[A-Z][A-Z' -]+, )", text)
    for start in range(0, len(entries), 10):
        yield f"devil/{start}", "\n".join(entries[start : start + 10]).strip() + "\n"


SOURCES = (
    Source("python", "libpython3.11-minimal", "PSF-2.0", _python_files),
    Source("python", "libpython3.11-stdlib", "PSF-2.0", _python_files),
    Source("prose", "r-cran-janeaustenr", "public domain (package: MIT)", _novels),
    Source("prose", "dict-devil", "public domain", _devils_dictionary),
    Source("technical", "postgresql-doc-15", "PostgreSQL", _html_pages),
    Source("technical", "sqlite3-doc", "public domain", _html_pages),
)


def documents(folder: Path) -> list[Document]:
    """Every usable document of every source, in a fixed order.

    Args:
        folder: cache for the packages.
    """
    found = []
    for source in SOURCES:
        for name, text in source.read(fetch(source.package, folder)):
            size = len(text.encode())
            foreign = sum(ord(c) > 0x2FF for c in text)
            if MIN_BYTES <= size <= MAX_BYTES and foreign <= 0.02 * len(text):
                found.append(Document(source.domain, f"{source.package}/{name}", text))
    return found


def excerpts(docs: list[Document], domain: str, limit_bytes: int, document_bytes: int = 6_000) -> str:
    """A small held-out text: the openings of held-out documents, cut at line ends.

    Args:
        docs: all documents.
        domain: whose held-out documents to take.
        limit_bytes: stop before passing this size.
        document_bytes: at most so much of one document.
    """
    text, size = [], 0
    for doc in sorted((d for d in docs if d.held_out and d.domain == domain), key=lambda d: d.rank):
        piece = ""
        for line in doc.text.splitlines(keepends=True):
            if len((piece + line).encode()) > document_bytes:
                break
            piece += line
        if size + len(piece.encode()) > limit_bytes:
            break
        text.append(piece)
        size += len(piece.encode()) + 1
    return "\n".join(text)
