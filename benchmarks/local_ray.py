"""A Ray of this machine alone, for measurements and tests: no command starts one."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from orchestrator.run_folder import run_folder, short_temp_dir

# No tensor goes through Ray's object store.
OBJECT_STORE_BYTES = 200 * 1024 * 1024
SETTINGS = {
    # Ray listens on all interfaces. Its own token would be a file in ~/.ray. Ray reads it once a process.
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray keeps idle Python processes ready for tasks. We start none.
    "RAY_prestart_worker_first_driver": "0",
    "RAY_enable_worker_prestart": "0",
    # Ray would otherwise warn that it may stop hiding GPUs from actors that ask for none.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@contextmanager
def local_ray() -> Iterator[str]:
    """Start Ray, and leave no process, file or setting of it behind.

    Yields:
        Its address. Processes started meanwhile may join it: they inherit the token.
    """
    before = dict(os.environ)
    # Unset, because then `ray.init` chooses "token". A value set now comes too late: Ray is imported.
    os.environ.pop("RAY_AUTH_MODE", None)
    os.environ.update(SETTINGS)
    try:
        with run_folder(short_temp_dir()) as folder:
            ray.init(
                address="local",
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                object_store_memory=OBJECT_STORE_BYTES,
                _temp_dir=str(folder / "ray"),
            )
            try:
                # Processes started from here on are told what this one has chosen by itself.
                os.environ["RAY_AUTH_MODE"] = "token"
                yield ray.get_runtime_context().gcs_address
            finally:
                ray.shutdown()
    finally:
        os.environ.clear()
        os.environ.update(before)
