"""The `potluck` command: first what a signal does, then what takes seconds to load."""

from __future__ import annotations

import os
import sys

from orchestrator.stopping import stop_at_once, stop_by_exception


def main() -> None:
    """Run the command line; Ctrl-C, SIGTERM and SIGHUP end it silently with 128 + their number."""
    stop_at_once()
    _keep_standard_numbers()
    # Loaded here, where an interruption no longer prints a traceback.
    from orchestrator.cli.app import load, out_of_memory, run
    from orchestrator.cli.output import print_error
    from placement.errors import PotluckError

    try:
        app = load(sys.argv[1:])
    except MemoryError as error:
        sys.exit(out_of_memory(error))
    except PotluckError as error:
        # Code that was not compiled, as after an update of a clone.
        print_error(str(error))
        sys.exit(error.exit_code)
    stop_by_exception()
    try:
        code = run(app, sys.argv[1:])
    finally:
        stop_at_once()
    sys.exit(code)


def _keep_standard_numbers() -> None:
    """Where a standard stream is closed, no file that is opened later may take its place."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115


if __name__ == "__main__":
    main()
