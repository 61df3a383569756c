"""A cable between the head and one worker, which can be pulled, plugged in again, or closed at one end.

It passes on the bytes of Unix stream sockets, which ZeroMQ's ipc uses. A pulled cable loses nothing: TCP
sends again what was on its way, so after a while everything arrives late.
"""

from __future__ import annotations

import os
import socket
import threading
from contextlib import suppress

_PART_BYTES = 2**16


class Cable:
    """Passes on what comes to some sockets, each to another, until `close`."""

    def __init__(self, ends: dict[str, str]) -> None:
        """`ends`: path that the head connects to -> path that the worker listens on."""
        self._plugged = threading.Event()
        self._plugged.set()
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._listeners = [self._listen(here, there) for here, there in ends.items()]

    def pull(self) -> None:
        """Nothing gets through; both ends think that all is well."""
        self._plugged.clear()

    def plug_in(self) -> None:
        """All that was on its way gets through, late."""
        self._plugged.set()

    def close_head_side(self) -> None:
        """The head's connections are closed; the worker's stay open until it writes to them."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for head, _ in pairs:
            with suppress(OSError):
                head.shutdown(socket.SHUT_RDWR)

    def close_worker_side(self) -> None:
        """The worker's connections are closed, and the head is not told of it."""
        with self._lock:
            pairs = list(self._pairs)
        for _, worker in pairs:
            with suppress(OSError):
                worker.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Pass on nothing any more."""
        self._closing.set()
        self._plugged.set()
        for listener in self._listeners:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        self.close_head_side()

    def _listen(self, here: str, there: str) -> socket.socket:
        with suppress(FileNotFoundError):
            os.unlink(here)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(here)
        listener.listen(64)
        threading.Thread(target=self._accept, args=(listener, there), daemon=True).start()
        return listener

    def _accept(self, listener: socket.socket, there: str) -> None:
        while not self._closing.is_set():
            try:
                head, _ = listener.accept()
            except OSError:
                return
            self._plugged.wait()
            worker = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                worker.connect(there)
            except OSError:
                # Nobody listens: the worker is gone, or is being started again.
                head.close()
                worker.close()
                continue
            with self._lock:
                self._pairs.append((head, worker))
            threading.Thread(target=self._pass_both, args=(head, worker), daemon=True).start()

    def _pass_both(self, head: socket.socket, worker: socket.socket) -> None:
        back = threading.Thread(target=self._pass_on, args=(worker, head), daemon=True)
        back.start()
        self._pass_on(head, worker)
        back.join()
        with self._lock:
            self._pairs = [pair for pair in self._pairs if pair[0] is not head]
        head.close()
        worker.close()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(_PART_BYTES):
                self._plugged.wait()
                target.sendall(data)
        except OSError:
            pass
        # The end of a connection crosses the cable as anything else does.
        self._plugged.wait()
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)
