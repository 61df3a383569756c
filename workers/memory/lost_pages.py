"""A page of a mapped file that cannot be had: the process ends in one line, and not by SIGBUS without a word.

A file may be cut short while it is mapped, or its disk fail. Whoever touches such a page has no way to go on.
"""

from __future__ import annotations

import os
from pathlib import Path

from workers.compiled import load_library


def end_lost_pages_in_one_line() -> None:
    """From now on this process ends with exit code 1, and one line on standard error that names the file.

    A SIGBUS that is about no mapped file goes to whoever handled it before.

    Raises:
        NativeCodeNotBuilt: it was not compiled, as an install does.
    """
    library = load_library(Path(__file__).parent, "_lost_pages")
    number = library.potluck_end_lost_pages_in_one_line()
    if number:
        raise OSError(number, os.strerror(number))
