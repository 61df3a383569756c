"""Ray for as long as a command runs: started here, or joined where it already runs."""

from __future__ import annotations

import functools
import logging
import os
import secrets
import socket
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import ray

from orchestrator.run_folder import run_folder, short_temp_dir
from orchestrator.stopping import held_back, stopping_by_exception, uninterrupted
from placement.errors import WorkerStartError
from placement.files.quote import first_line

# No tensor goes through Ray's object store.
OBJECT_STORE_BYTES = 200 * 1024 * 1024
CONNECT_TIMEOUT_S = 5.0
# Ray's processes are to end within this, before they are killed.
END_TIMEOUT_S = 5.0


@contextmanager
def local_ray() -> Iterator[Path]:
    """Start Ray on this machine, and leave no process, file or setting of it behind.

    Ray listens on all interfaces, even on a machine by itself. Its own token would be a file in ~/.ray, so it
    gets a token of this process instead, which only child processes inherit.

    While it runs, stop signals become SystemExit, so that `kill` and a closed terminal stop everything as
    Ctrl-C does. Nothing interrupts the stopping itself. What an earlier, killed process left goes first.
    If Ray runs in this process already, it is used and left running.

    Yields:
        A directory of this user alone, removed at the end.

    Raises:
        WorkerStartError: Ray did not start.
    """
    with stopping_by_exception(), run_folder(short_temp_dir()) as directory:
        if ray.is_initialized():
            yield directory
            return
        others = set(psutil.Process().children(recursive=True))
        with _environment(_local_settings()):
            try:
                _init(directory)
                yield directory
            finally:
                with uninterrupted():
                    started = set(psutil.Process().children(recursive=True)) - others
                    ray.shutdown()
                    _end(started)


@contextmanager
def joined_ray(address: str) -> Iterator[None]:
    """Connect to a running cluster, with whatever credentials Ray's own variables give; leave it running.

    Raises:
        WorkerStartError: it cannot be reached or refuses the token.
    """
    if ray.is_initialized():
        yield
        return
    with stopping_by_exception():
        try:
            try:
                _check_reachable(address)
                with held_back():
                    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
            except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
                raise WorkerStartError(
                    f"Ray at {address}: {first_line(error)}: run `ray up` or `ray start` first, here too, "
                    "with the same token"
                ) from error
            yield
        finally:
            with uninterrupted():
                ray.shutdown()


def _init(directory: Path) -> None:
    try:
        with held_back():
            ray.init(
                address="local",
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                object_store_memory=OBJECT_STORE_BYTES,
                _temp_dir=str(directory / "ray"),
            )
    except Exception as error:
        raise WorkerStartError(f"Ray did not start on this machine: {first_line(error)}") from error


def _end(processes: Collection[psutil.Process]) -> None:
    """Wait for the processes to end, then kill the rest: an interrupted start leaves some that Ray forgot."""
    _, alive = psutil.wait_procs(processes, timeout=END_TIMEOUT_S)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=END_TIMEOUT_S)


def _check_reachable(address: str) -> None:
    """Ray itself tries an address where nobody listens for minutes."""
    host, _, port = address.rpartition(":")
    if host:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S):
            pass


@functools.cache
def _token() -> str:
    """One for all clusters of this process: Ray reads it once."""
    return secrets.token_hex(32)


def _local_settings() -> Mapping[str, str | None]:
    """Environment variables while Ray is started here, None for unset."""
    return {
        # Unset, because then `ray.init` chooses "token". A value set now comes too late: Ray is imported.
        "RAY_AUTH_MODE": None,
        "RAY_AUTH_TOKEN": _token(),
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray keeps idle Python processes ready for tasks. We start none.
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
