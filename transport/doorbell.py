"""Waiting for one ZeroMQ socket in several threads."""

from __future__ import annotations

import os
import select

from transport.native import frames


class Doorbell:
    """Wakes one of the waiting threads when a socket has news, and all of them once it is shut.

    libzmq's ZMQ_FD becomes readable when the socket's state *changes*. The threads share one edge-triggered
    epoll, so each change wakes exactly one of them: on Linux the one that began to wait last. A thread that
    was woken must receive until nothing is left, and so must a thread that has used the socket in another
    way. Otherwise a message could lie there with nobody woken for it.
    """

    def __init__(self, socket_fd: int) -> None:
        self._shut = False
        self._shut_reader, self._shut_writer = os.pipe()
        self._epoll = select.epoll()
        self._fd = self._epoll.fileno()
        self._epoll.register(socket_fd, select.EPOLLIN | select.EPOLLET)
        self._epoll.register(self._shut_reader, select.EPOLLIN)

    def wait(self) -> bool:
        """Sleep until there may be news; False once the bell is shut."""
        if not self._shut:
            frames.wait_epoll(self._fd)
        return not self._shut

    def shut(self) -> None:
        """Wake every thread, now and from now on."""
        self._shut = True
        os.write(self._shut_writer, b"\0")

    def close(self) -> None:
        """Free the descriptors; no thread may be waiting."""
        self._epoll.close()
        os.close(self._shut_reader)
        os.close(self._shut_writer)
