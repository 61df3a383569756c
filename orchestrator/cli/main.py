"""The `potluck` command."""

from __future__ import annotations

import errno
import io
import signal
import sys
from types import FrameType

import typer

from orchestrator.cli.demo import demo
from orchestrator.cli.generate import generate
from orchestrator.cli.output import print_error
from orchestrator.cli.plan import plan
from orchestrator.cli.simulate import simulate
from orchestrator.cli.stats import stats
from orchestrator.cli.study import study
from orchestrator.cli.trace import trace
from orchestrator.cli.usage import UsageError, usage_message
from orchestrator.cli.whatif import whatif
from placement.errors import PotluckError

app = typer.Typer(
    name="potluck",
    help="Run a Mixture-of-Experts model too big for any box you own by pooling the boxes you do own.",
    epilog="Start with `make demo`. Every command takes --json: one document on standard output.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (generate, plan, stats, trace, simulate, whatif, study, demo):
    app.command()(command)


_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def main() -> None:
    """Run the command line; a user's mistake ends as one line on standard error and exit code 2."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        # Not standalone: typer would print a framed message of several lines for a mistake in an option.
        sys.exit(app(sys.argv[1:] or ["--help"], prog_name="potluck", standalone_mode=False))
    except typer.Abort:
        sys.exit(128 + signal.SIGINT)
    except UsageError as error:
        print_error(usage_message(error))
        sys.exit(2)
    except PotluckError as error:
        print_error(str(error))
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        what = error.filename or "the result"
        print_error(f"cannot write {what}: {error.strerror}; make room and try again")
        # What did not go out would fail again when the interpreter empties its buffers.
        sys.stdout = io.StringIO()
        sys.exit(2)


def _terminate(signum: int, frame: FrameType | None) -> None:
    # As an exception, so that every `with` on the way out stops the workers it started.
    sys.exit(128 + signum)


if __name__ == "__main__":
    main()
