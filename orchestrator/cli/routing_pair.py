"""The two routing files that `potluck stats compare` and `stats drift` look at."""

from __future__ import annotations

from pathlib import Path

from placement.errors import RoutingFileError
from placement.given.stats import RoutingStats
from placement.interop.read import detect


def load_routing_pair(first: Path, second: Path) -> tuple[RoutingStats, RoutingStats]:
    """Two routing files of one model.

    Raises:
        RoutingFileError: names the file; no routing file of ours, or the second is of another model.
    """
    for path in (first, second):
        if detect(path) != "potluck":
            raise RoutingFileError(
                f"{path}: expected a routing file of `potluck stats`; of what another engine recorded "
                "`potluck stats --from` makes one"
            )
    a, b = RoutingStats.load(first), RoutingStats.load(second)
    b.check_fingerprint(a.fingerprint, f"{a.model} as in {first}", str(second))
    return a, b
