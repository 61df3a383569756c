"""Watches a socket's connections: not too many of them, and none whose message never ends.

libzmq collects all frames of a message before it delivers any, whatever its high-water marks say. So a peer
that never ends a message would fill this machine's memory unseen. The kernel counts what comes in on each
connection; one that has taken in far more than a message without delivering one is cut off.
"""

from __future__ import annotations

import ctypes
import fcntl
import ipaddress
import logging
import os
import socket
import struct
import termios
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import zmq
from zmq.utils.monitor import parse_monitor_message

from transport.loops import end_process
from transport.sockets import Socket, monitored

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 64
# From one address of another machine: a head has one, and opens another while an old one is dying.
MAX_OF_ADDRESS = 16
SWEEP_S = 0.1
# What a connection may take in besides its messages: handshakes, and then heartbeats.
SLACK_BYTES = 1 << 20
HEARTBEAT_BYTES_PER_S = 4096
# On a local socket nobody counts bytes. One that more than so many sweeps find not empty, while it delivers
# nothing and this process's memory grows by so much, has a message without an end. Gigabytes a second may
# come there, so sweeps are closer together while one is not empty.
LOCAL_SWEEPS, LOCAL_SWEEP_S = 3, 0.02
LOCAL_GROWTH_BYTES = 64 << 20
TELL_EVERY_S = 10.0

T = TypeVar("T")

_TCP_INFO_BYTES = 136
_EVENTS = int(zmq.EVENT_ACCEPTED | zmq.EVENT_MONITOR_STOPPED)


@dataclass(slots=True, eq=False)
class Connection:
    """One accepted connection, known by its descriptor and the inode behind it.

    Attributes:
        address: of the peer's machine, "" where it is this one.
        delivered: whether it has delivered a message since the last sweep; the receiving thread sets it.
        greeted: whether it has ever delivered one.
        base_bytes: what it had taken in when it last delivered one, and what was forgiven since.
        over: sweeps in a row that found too many bytes.
        unread: whether the last sweep found a local socket that was not empty.
        busy: sweeps since the last message that did.
        base_memory: of this process at the first of those.
    """

    fd: int
    inode: int
    address: str
    is_tcp: bool
    delivered: bool = False
    greeted: bool = False
    base_bytes: float = 0.0
    over: int = 0
    unread: bool = False
    busy: int = 0
    base_memory: int = 0


class Guard:
    """Guards one socket in a thread of its own, from `start` until the socket's monitor is taken away."""

    def __init__(self, guarded: Socket, max_message_bytes: int, name: str) -> None:
        """Before the socket is bound; `max_message_bytes` is of all frames of a message together."""
        self._guarded = guarded
        self._name = name
        self._limit_bytes = _limit_bytes(max_message_bytes)
        self._connections: dict[int, Connection] = {}
        self._swept_s = time.monotonic()
        self._cuts, self._tell_from_s = 0, self._swept_s
        self._monitor: Socket = monitored(guarded, _EVENTS)
        self._thread = threading.Thread(target=self._watch, name=f"{name}-guard", daemon=True)
        self._thread.start()

    def of(self, fd: int) -> Connection | None:
        """The connection a message came on, if it is noted; its `delivered` is the caller's to set."""
        connection = self._connections.get(fd)
        # The number may be a newer connection's, which is not noted yet.
        return connection if connection is not None and _inode(fd) == connection.inode else None

    def stop(self) -> None:
        """Before the socket is closed, by the thread that has it."""
        self._guarded.disable_monitor()
        self._thread.join()
        self._monitor.close(0)

    def _watch(self) -> None:
        try:
            while True:
                pause_s = LOCAL_SWEEP_S if any(c.unread for c in self._connections.values()) else SWEEP_S
                if self._monitor.poll(int(pause_s * 1000) if self._connections else -1):
                    event = parse_monitor_message(self._monitor.recv_multipart())
                    if event["event"] == zmq.EVENT_MONITOR_STOPPED:
                        return
                    self._accepted(int(event["value"]))
                if time.monotonic() >= self._swept_s + pause_s:
                    self._sweep()
        except zmq.ContextTerminated:
            return
        except BaseException as error:
            end_process(f"{self._name}: guard", error)

    def _accepted(self, fd: int) -> None:
        """Note a new connection; where there are too many, one that never said anything makes room."""
        self._forget_closed()
        new = _connection(fd)
        if new is None:
            return
        self._connections[fd] = new
        beside = [other for other in self._connections.values() if other.address == new.address]
        if new.address and len(beside) > MAX_OF_ADDRESS:
            self._cut(_least_known(beside), f"more than {MAX_OF_ADDRESS} connections of {new.address}")
        elif len(self._connections) > MAX_CONNECTIONS:
            self._cut(_least_known(self._connections.values()), f"more than {MAX_CONNECTIONS} connections")

    def _sweep(self) -> None:
        now_s = time.monotonic()
        forgiven_bytes = (now_s - self._swept_s) * HEARTBEAT_BYTES_PER_S
        self._swept_s = now_s
        self._forget_closed()
        for connection in list(self._connections.values()):
            delivered, connection.delivered = connection.delivered, False
            connection.greeted |= delivered
            if connection.is_tcp:
                endless = _tcp_is_endless(connection, delivered, forgiven_bytes, self._limit_bytes)
            else:
                endless = self._local_is_endless(connection, delivered)
            if endless:
                self._cut(connection, "a message without an end")

    def _local_is_endless(self, connection: Connection, delivered: bool) -> bool:
        connection.unread = bool(_look(connection, _unread_bytes))
        if delivered:
            connection.busy = 0
        elif connection.unread:
            if connection.busy == 0:
                connection.base_memory = _own_memory_bytes()
            connection.busy += 1
        if connection.busy <= LOCAL_SWEEPS:
            return False
        grown_bytes = _own_memory_bytes() - connection.base_memory
        return grown_bytes > self._limit_bytes + LOCAL_GROWTH_BYTES

    def _forget_closed(self) -> None:
        for connection in list(self._connections.values()):
            if _inode(connection.fd) != connection.inode:
                del self._connections[connection.fd]

    def _cut(self, connection: Connection, why: str) -> None:
        """Break it off; libzmq finds out, closes it and frees what it had collected."""
        self._cuts += 1
        now_s = time.monotonic()
        if now_s >= self._tell_from_s:
            # Strangers can come often: a line for each would fill the disk.
            whose = connection.address or "this machine"
            log.warning("%s: cut off %d connections, now one of %s: %s", self._name, self._cuts, whose, why)
            self._cuts, self._tell_from_s = 0, now_s + TELL_EVERY_S
        _look(connection, _break_off)
        self._connections.pop(connection.fd, None)


class ClientGuard:
    """Guards a connecting socket's one TCP connection. Its owner's thread calls all methods.

    Local sockets are left alone: at their other end is a process that this one started.

    Attributes:
        delivered: a message has come; its owner sets it.
    """

    def __init__(self, guarded: Socket, max_message_bytes: int) -> None:
        self._guarded = guarded
        self._limit_bytes = _limit_bytes(max_message_bytes)
        self._connection: Connection | None = None
        self._looked_s = time.monotonic()
        self.delivered = False

    def connected(self, fd: int) -> None:
        """The connection has come about, as the socket's monitor says."""
        found = _connection(fd)
        self._connection = found if found is not None and found.is_tcp else None

    def carried_bytes(self) -> int:
        """By the connection so far, both ways; 0 where there is none."""
        return 0 if self._connection is None else _look(self._connection, _carried_bytes) or 0

    def look(self) -> None:
        """Reset the connection if its message has no end; call it ten times a second or more often."""
        now_s = time.monotonic()
        connection = self._connection
        if connection is None or now_s < self._looked_s + SWEEP_S:
            return
        forgiven_bytes = (now_s - self._looked_s) * HEARTBEAT_BYTES_PER_S
        self._looked_s = now_s
        # One that is whole and not fetched yet counts as delivered.
        whole = self.delivered or bool(self._guarded.poll(0))
        self.delivered = False
        if _tcp_is_endless(connection, whole, forgiven_bytes, self._limit_bytes):
            _look(connection, _break_off)
            self._connection = None


def _limit_bytes(max_message_bytes: int) -> int:
    """That a connection may take in and deliver nothing."""
    return 2 * max_message_bytes + SLACK_BYTES


def _tcp_is_endless(connection: Connection, delivered: bool, forgiven_bytes: float, limit_bytes: int) -> bool:
    """What a sweep finds of a TCP connection."""
    taken_bytes = _look(connection, _taken_bytes)
    if taken_bytes is None:
        return False
    connection.base_bytes = taken_bytes if delivered else connection.base_bytes + forgiven_bytes
    over = taken_bytes - connection.base_bytes > limit_bytes
    # Twice in a row: between two looks a message that is whole has been delivered.
    connection.over = connection.over + 1 if over else 0
    return connection.over >= 2


def _least_known(connections: Iterable[Connection]) -> Connection:
    """The oldest that has never delivered a message, or else the newest."""
    in_order = list(connections)
    silent = [connection for connection in in_order if not connection.greeted and not connection.delivered]
    return silent[0] if silent else in_order[-1]


def _connection(fd: int) -> Connection | None:
    """What libzmq has accepted; None where it is gone already."""
    inode = _inode(fd)
    if inode is None:
        return None
    found = Connection(fd, inode, "", is_tcp=False)
    family = _look(found, lambda peer: peer.family)
    if family not in (socket.AF_INET, socket.AF_INET6):
        return found if family == socket.AF_UNIX else None
    found.is_tcp = True
    address = _look(found, lambda peer: str(peer.getpeername()[0])) or ""
    found.address = "" if not address or ipaddress.ip_address(address).is_loopback else address
    return found


def _inode(fd: int) -> int | None:
    try:
        return os.fstat(fd).st_ino
    except OSError:
        return None


def _look(connection: Connection, at: Callable[[socket.socket], T]) -> T | None:
    """Call with a duplicate of the connection's socket; None where it is closed, or another by now."""
    try:
        duplicate = os.dup(connection.fd)
    except OSError:
        return None
    try:
        peer = socket.socket(fileno=duplicate)
    except OSError:
        os.close(duplicate)
        return None
    with peer:
        try:
            return at(peer) if os.fstat(duplicate).st_ino == connection.inode else None
        except OSError:
            return None


def _taken_bytes(peer: socket.socket) -> int:
    """Bytes that ever came in, as the kernel counts them."""
    return _counted_bytes(peer)[1]


def _carried_bytes(peer: socket.socket) -> int:
    """Bytes that ever came in or have reached the other machine."""
    return sum(_counted_bytes(peer))


def _counted_bytes(peer: socket.socket) -> tuple[int, int]:
    """Bytes that the other machine has acknowledged, and that came in; of old kernels none."""
    info = peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    if len(info) < _TCP_INFO_BYTES:
        return 0, 0
    acknowledged, received = struct.unpack_from("=QQ", info, 120)
    return int(acknowledged), int(received)


def _break_off(peer: socket.socket) -> None:
    if peer.family == socket.AF_UNIX:
        peer.shutdown(socket.SHUT_RDWR)
    else:
        # After a shutdown Linux still takes in what a peer goes on sending. To connect a TCP socket to
        # nothing resets the connection, and Python's own `connect` cannot say so.
        nothing = struct.pack("=H14x", socket.AF_UNSPEC)
        ctypes.CDLL(None).connect(peer.fileno(), nothing, len(nothing))


def _unread_bytes(peer: socket.socket) -> int:
    answer = fcntl.ioctl(peer.fileno(), termios.FIONREAD, struct.pack("i", 0))
    return int(struct.unpack("i", answer)[0])


def _own_memory_bytes() -> int:
    """Resident, without what is mapped from files."""
    with open("/proc/self/statm", encoding="ascii") as statm:
        _, resident, shared = map(int, statm.read().split()[:3])
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")
