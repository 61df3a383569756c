"""The process that is forked: it has torch in memory, and becomes whatever Python is asked to run.

    python -m tests.forks.server SOCKET

It ends when its standard input does. A connection asks for one process: a JSON object and three files, which
become its standard ones. The answer is {"pid"}, and {"status"} once it has ended. A number that is sent in
between is a signal for it.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import select
import signal
import socket
import sys
import threading
import warnings
from contextlib import suppress
from typing import Any, NoReturn

LONGEST = 2**20


def main() -> None:
    """Fork whenever asked, until nobody can ask any more."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listening.bind(sys.argv[1])
    listening.listen(100)
    print("ready", flush=True)
    # Nothing is loaded for tests that ask for nothing.
    ready, _, _ = select.select([0, listening], [], [])
    if 0 not in ready:
        _load()
        _Forked(listening).run()


def _load() -> None:
    """What the processes of tests import."""
    import torch

    import workers.formats.identity
    import workers.formats.open_model
    import workers.holdings
    import workers.paced
    import workers.pool
    import workers.probe.echo
    import workers.probe.node
    import workers.probe.trips
    import workers.pulse
    import workers.serve
    import workers.service
    import workers.sessions  # noqa: F401

    torch.set_num_threads(1)
    # What is here already is copied to no child.
    gc.collect()
    gc.freeze()


class _Forked:
    """All processes that run, by the file that says when something is to be done about them."""

    def __init__(self, listening: socket.socket) -> None:
        self._listening = listening
        self._poll = select.poll()
        for file in (0, listening.fileno()):
            self._poll.register(file, select.POLLIN)
        # By connection: the connection, the handle of its process, and whether that ends with it.
        self._asked: dict[int, tuple[socket.socket, int, bool]] = {}
        # By handle: the pid, and its connection. Not its number, which another has once this one is closed.
        self._ends: dict[int, tuple[int, socket.socket]] = {}

    def run(self) -> None:
        while True:
            for file, _ in self._poll.poll():
                if file == 0:
                    return
                if file == self._listening.fileno():
                    self._begin(self._listening.accept()[0])
                elif file in self._ends:
                    self._end(file)
                elif file in self._asked:
                    self._signal(file)

    def _begin(self, connection: socket.socket) -> None:
        message, files, _, _ = socket.recv_fds(connection, LONGEST, 3)
        if not message:
            connection.close()
            return
        asked = json.loads(message)
        pid = os.fork()
        if pid == 0:
            _become(asked, files)
        for file in files:
            os.close(file)
        handle = os.pidfd_open(pid)
        self._asked[connection.fileno()] = (connection, handle, asked["ends_with_asker"])
        self._ends[handle] = (pid, connection)
        for file in (handle, connection.fileno()):
            self._poll.register(file, select.POLLIN)
        _say(connection, {"pid": pid})

    def _end(self, handle: int) -> None:
        pid, connection = self._ends.pop(handle)
        _, status = os.waitpid(pid, 0)
        self._poll.unregister(handle)
        os.close(handle)
        of = connection.fileno()
        if self._asked.pop(of, None) is not None:
            self._poll.unregister(of)
            _say(connection, {"status": os.waitstatus_to_exitcode(status)})
            connection.close()

    def _signal(self, of: int) -> None:
        connection, handle, ends_too = self._asked[of]
        message = connection.recv(LONGEST)
        if message or ends_too:
            signal.pidfd_send_signal(handle, int(message or signal.SIGKILL))
        if not message:
            del self._asked[of]
            self._poll.unregister(of)
            connection.close()


def _say(connection: socket.socket, message: dict[str, int]) -> None:
    with suppress(OSError):
        connection.send(json.dumps(message).encode())


def _become(asked: dict[str, Any], files: list[int]) -> NoReturn:
    """Run `python ARGUMENTS` in this process."""
    status = 1
    try:
        if asked["new_session"]:
            os.setsid()
        for number, file in enumerate(files):
            os.dup2(file, number)
        os.closerange(3, 1024)
        os.environ.clear()
        os.environ.update(asked["environment"])
        os.chdir(asked["folder"])
        at_once = bool(os.environ.get("PYTHONUNBUFFERED"))
        sys.stdin = os.fdopen(0)
        sys.stdout, sys.stderr = (os.fdopen(n, "w", 1 if at_once or n == 2 else -1) for n in (1, 2))
        gc.unfreeze()
        status = _run(asked["arguments"])
    finally:
        with suppress(Exception):
            threading._shutdown()
            import atexit

            atexit._run_exitfuncs()
            sys.stdout.flush()
        os._exit(status)


def _run(arguments: list[str]) -> int:
    """Its exit code."""
    while arguments[0] in ("-P", "-I", "-u"):
        arguments = arguments[1:]
    kind, what, *rest = arguments
    sys.argv = ["-c" if kind == "-c" else what, *rest]
    try:
        with warnings.catch_warnings():
            # A module of this name is loaded already.
            warnings.simplefilter("ignore", RuntimeWarning)
            if kind == "-m":
                runpy.run_module(what, run_name="__main__", alter_sys=True)
            else:
                exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


if __name__ == "__main__":
    main()
