"""Measures this box: `python -m workers.probe`, its figures as one line of JSON on standard output.

What is measured next goes to standard error, a line each.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from placement.errors import PotluckError
from workers.probe.hardware import hardware


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m workers.probe")
    parser.add_argument("--fingerprint", action="store_true", help="only say what box this is")
    parser.add_argument("--forms", default="", help="of weights, with commas")
    parser.add_argument("--folder", type=Path, default=Path.home(), help="whose disk is read")
    parser.add_argument("--seconds", type=float, default=10.0)
    args = parser.parse_args()
    if args.fingerprint:
        print(hardware().fingerprint, flush=True)
        return 0
    # Loads torch, which the fingerprint does without.
    from workers.probe.experts import DEFAULT_FORMS
    from workers.probe.node import measure_node

    forms = args.forms.split(",") if args.forms else DEFAULT_FORMS
    folder = args.folder.expanduser()
    try:
        node = measure_node(
            forms,
            folder if folder.exists() else Path.home(),
            args.seconds,
            lambda what: print(what, file=sys.stderr, flush=True),
        )
    except PotluckError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(node.model_dump_json(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
