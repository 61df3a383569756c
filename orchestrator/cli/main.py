"""The `potluck` command: first what a signal does, then what takes seconds to load."""

from __future__ import annotations

import sys

from orchestrator.stopping import stop_at_once, stop_by_exception


def main() -> None:
    """Run the command line; Ctrl-C, SIGTERM and SIGHUP end it silently with 128 + their number."""
    stop_at_once()
    # Loaded here, where an interruption no longer prints a traceback.
    from orchestrator.cli.app import load, out_of_memory, run

    try:
        app = load(sys.argv[1:])
    except MemoryError as error:
        sys.exit(out_of_memory(error))
    stop_by_exception()
    try:
        code = run(app, sys.argv[1:])
    finally:
        stop_at_once()
    sys.exit(code)


if __name__ == "__main__":
    main()
