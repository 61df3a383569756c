"""Small C++ programs that tests compile, kept in this tree until a file or the compiler changes."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

COMPILER = shutil.which(os.environ.get("CXX", "c++"))
FOLDER = Path(__file__).parents[1] / "build" / "programs"


def complaints(sources: Sequence[Path], include: Sequence[Path], *flags: str) -> str:
    """What a program prints, if it fails or prints anything.

    Args:
        include: folders of headers.
    """
    done = subprocess.run([_program(sources, include, flags)], capture_output=True, text=True, timeout=300)
    return done.stdout + done.stderr + (f"it ended with {done.returncode}" if done.returncode else "")


def _program(sources: Sequence[Path], include: Sequence[Path], flags: Sequence[str]) -> Path:
    """Compiled, or as it was compiled before by the same compiler from the same files."""
    assert COMPILER is not None
    command = [COMPILER, "-std=c++17", *flags, *(f"-I{folder}" for folder in include), *map(str, sources)]
    compiler = subprocess.run([COMPILER, "--version"], check=True, capture_output=True, timeout=60).stdout
    read = [*sources, *(header for folder in include for header in sorted(folder.rglob("*.h")))]
    told = repr((compiler, [path.read_bytes() for path in read]))
    name = f"{sources[0].stem}-{_digest(repr(command))}"
    program = FOLDER / f"{name}-{_digest(told)}"
    if not program.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        making = program.with_suffix(f".{os.getpid()}")
        subprocess.run([*command, "-o", str(making)], check=True, timeout=600)
        for older in FOLDER.glob(f"{name}-*"):
            # Others may be making theirs.
            if not older.suffix:
                older.unlink(missing_ok=True)
        making.rename(program)
    return program


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
