"""Ray for as long as a command runs: started here, or joined where it already runs."""

from __future__ import annotations

import functools
import logging
import os
import secrets
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import ray

from placement.errors import WorkerStartError

# No tensor goes through Ray's object store.
OBJECT_STORE_BYTES = 200 * 1024 * 1024
# Ray's sockets lie below its directory, in a path of about 70 characters, and may have 107.
MAX_TEMP_DIR_CHARS = 32
CONNECT_TIMEOUT_S = 5.0


@contextmanager
def local_ray() -> Iterator[Path]:
    """Start Ray on this machine, and leave no process, file or setting of it behind.

    Ray listens on all interfaces even when it is alone, and would write a token to ~/.ray: it is given one of
    this process instead, which only its children inherit. A SIGTERM becomes SystemExit meanwhile, so that
    `kill` stops everything as Ctrl-C does; and nothing interrupts the stopping. Where Ray already runs in
    this process, it is used and left running.

    Yields:
        A directory of this user alone, removed at the end.

    Raises:
        WorkerStartError: Ray did not start.
    """
    directory = Path(tempfile.mkdtemp(prefix="potluck-", dir=_short_temp_dir()))
    try:
        if ray.is_initialized():
            yield directory
            return
        with _environment(_local_settings()), _sigterm_exits():
            try:
                _init(directory)
                yield directory
            finally:
                with uninterrupted():
                    ray.shutdown()
    finally:
        with uninterrupted():
            shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def joined_ray(address: str) -> Iterator[None]:
    """Connect to a running cluster, with whatever credentials Ray's own variables give; leave it running.

    Raises:
        WorkerStartError: it cannot be reached or refuses the token.
    """
    if ray.is_initialized():
        yield
        return
    try:
        with _sigterm_exits():
            try:
                _check_reachable(address)
                with _keeping_sigterm():
                    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
            except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
                raise WorkerStartError(
                    f"Ray at {address}: {_first_line(error)}: run `ray up` or `ray start` first, here too, "
                    "with the same token"
                ) from error
            yield
    finally:
        with uninterrupted():
            ray.shutdown()


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ignore Ctrl-C and SIGTERM for a few seconds of cleaning up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _init(directory: Path) -> None:
    try:
        with _keeping_sigterm():
            ray.init(
                address="local",
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                object_store_memory=OBJECT_STORE_BYTES,
                _temp_dir=str(directory / "ray"),
            )
    except Exception as error:
        raise WorkerStartError(f"Ray did not start on this machine: {_first_line(error)}") from error


def _check_reachable(address: str) -> None:
    """Ray itself tries an address where nobody listens for minutes."""
    host, _, port = address.rpartition(":")
    if host:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S):
            pass


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _short_temp_dir() -> str:
    default = tempfile.gettempdir()
    return default if len(default) <= MAX_TEMP_DIR_CHARS else "/tmp"


@functools.cache
def _token() -> str:
    """One for all clusters of this process: Ray reads it once."""
    return secrets.token_hex(32)


def _local_settings() -> Mapping[str, str | None]:
    """Environment variables while Ray is started here, None for unset."""
    return {
        # Unset, `ray.init` chooses "token"; set, it would count only if it was so when Ray was imported.
        "RAY_AUTH_MODE": None,
        "RAY_AUTH_TOKEN": _token(),
        "RAY_USAGE_STATS_ENABLED": "0",
        # Idle Python processes kept for tasks, which there are none of.
        "RAY_prestart_worker_first_driver": "0",
        "RAY_enable_worker_prestart": "0",
        # Ray would otherwise warn that it may stop hiding GPUs from actors that ask for none.
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        # Ray points it at a debugger of its own, and leaves it there.
        "PYTHONBREAKPOINT": os.environ.get("PYTHONBREAKPOINT"),
    }


@contextmanager
def _environment(settings: Mapping[str, str | None]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in settings}
    _set_environment(settings)
    try:
        yield
    finally:
        _set_environment(before)


def _set_environment(settings: Mapping[str, str | None]) -> None:
    for name, value in settings.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@contextmanager
def _keeping_sigterm() -> Iterator[None]:
    """`ray.init` puts its own handler in place of the caller's, which exits with the bare signal number."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _sigterm_exits() -> Iterator[None]:
    """Turn SIGTERM into SystemExit where it would end the process with no cleaning up at all."""
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    ):
        yield
        return
    signal.signal(signal.SIGTERM, _exit)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _exit(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
