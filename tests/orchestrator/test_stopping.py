"""Ctrl-C, SIGTERM and SIGHUP end a command silently, at any moment, with 128 + their number."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from orchestrator.stopping import STOP_SIGNALS, stopping_by_exception, uninterrupted
from tests.orchestrator.processes import DEADLINE_S, run, start


@pytest.mark.parametrize(
    ("number", "module"),
    [
        (signal.SIGINT, "typer"),
        (signal.SIGINT, "torch._C"),
        pytest.param(signal.SIGINT, "torch", marks=pytest.mark.long),
        (signal.SIGTERM, "numpy"),
        (signal.SIGHUP, "typer"),
    ],
)
def test_a_command_is_stopped_silently_while_modules_load(number: signal.Signals, module: str) -> None:
    # The interpreter tells of each module when it is loaded, so the signal meets the loading of the next.
    command = ("-X", "importtime", "-m", "orchestrator.cli.main", "generate", "--model", "nowhere")
    with start(*command) as process:
        assert process.stderr is not None
        while line := process.stderr.readline():
            if line.split()[-1] == module:
                break
        process.send_signal(number)
        rest = process.stderr.read()
        assert process.wait(DEADLINE_S) == 128 + number
    assert [line for line in rest.splitlines() if not line.startswith("import time:")] == []


def test_a_library_that_catches_exceptions_while_it_loads_delays_no_stop() -> None:
    program = """
        import os, signal
        from orchestrator.stopping import stop_by_exception, stopping_at_once

        def caught():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            except SystemExit:
                print("caught", flush=True)

        stop_by_exception()
        with stopping_at_once():
            pass
        caught()
        with stopping_at_once():
            caught()
    """
    with run(program) as process:
        assert process.communicate(timeout=DEADLINE_S) == ("caught\n", "")
    assert process.returncode == 128 + signal.SIGTERM


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    """`nohup potluck …` goes on when the terminal is closed."""
    program = """
        import os, signal
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        from orchestrator.stopping import stop_at_once, stop_by_exception, stopping_by_exception
        for install in (stop_at_once, stop_by_exception):
            install()
            os.kill(os.getpid(), signal.SIGHUP)
        with stopping_by_exception():
            os.kill(os.getpid(), signal.SIGHUP)
        print("still here")
    """
    assert run(program).communicate(timeout=DEADLINE_S) == ("still here\n", "")


def test_nothing_interrupts_the_stopping_and_handlers_come_back() -> None:
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    with uninterrupted():
        for number in STOP_SIGNALS:
            os.kill(os.getpid(), number)
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_would_end_the_process_becomes_an_exception(number: signal.Signals) -> None:
    def stop() -> None:
        # Under `nohup` it would be ignored, here too.
        signal.signal(number, signal.SIG_DFL)
        with stopping_by_exception():
            os.kill(os.getpid(), number)

    with pytest.raises(SystemExit) as stopped:
        stop()
    assert stopped.value.code == 128 + number
    assert signal.getsignal(number) == signal.SIG_DFL


def test_other_threads_change_no_handler() -> None:
    before = [signal.getsignal(number) for number in STOP_SIGNALS]

    def work() -> None:
        with stopping_by_exception(), uninterrupted():
            seen.append([signal.getsignal(number) for number in STOP_SIGNALS])

    seen: list[object] = []
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]
