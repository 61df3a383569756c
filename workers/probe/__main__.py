"""Measures this box: `python -m workers.probe`, its figures as one line of JSON on standard output.

What is measured next goes to standard error, a line each. With `--wait` it writes READY when it has started,
and measures once a line of JSON on standard input says for how many seconds.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from placement.errors import PotluckError
from workers.probe.hardware import hardware

READY = "ready"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m workers.probe")
    parser.add_argument("--fingerprint", action="store_true", help="only say what box this is")
    parser.add_argument("--forms", default="", help="of weights, with commas")
    parser.add_argument("--folder", type=Path, default=Path.home(), help="whose disk is read")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--wait", action="store_true", help="for a line that says how many")
    args = parser.parse_args()
    if args.fingerprint:
        print(hardware().fingerprint, flush=True)
        return 0
    # Loads torch, which the fingerprint does without.
    from workers.probe.experts import DEFAULT_FORMS, form_named
    from workers.probe.node import loopback, measure_node

    forms = args.forms.split(",") if args.forms else DEFAULT_FORMS
    folder = args.folder.expanduser()
    try:
        known = [form_named(name).name for name in forms]
        with loopback() as echo:
            seconds = args.seconds
            if args.wait:
                print(json.dumps(READY), flush=True)
                asked = sys.stdin.readline()
                if not asked:
                    return 0
                seconds = float(json.loads(asked)["seconds"])
            node = measure_node(
                known,
                folder if folder.exists() else Path.home(),
                seconds,
                echo,
                lambda what: print(what, file=sys.stderr, flush=True),
            )
    except PotluckError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(node.model_dump_json(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
