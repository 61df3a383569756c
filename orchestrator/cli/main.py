"""The `potluck` command."""

from __future__ import annotations

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
from orchestrator.cli.whatif import whatif
from placement.errors import PotluckError

app = typer.Typer(
    name="potluck",
    help="Run a Mixture-of-Experts model too big for any box you own by pooling the boxes you do own.",
    epilog="Start with `make demo`. Every command takes --json: one document on standard output.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (generate, plan, stats, simulate, whatif, study, demo):
    app.command()(command)


def main() -> None:
    """Run the command line; a user's mistake ends as one line on standard error and exit code 2."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        app()
    except PotluckError as error:
        print_error(str(error))
        sys.exit(error.exit_code)


def _terminate(signum: int, frame: FrameType | None) -> None:
    # As an exception, so that every `with` on the way out stops the workers it started.
    sys.exit(128 + signum)


if __name__ == "__main__":
    main()
