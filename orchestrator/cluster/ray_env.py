"""The environment in which a cluster's Ray runs: its token, and TLS on every gRPC port."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from orchestrator.cluster.keys_folder import CA, NODE, NODE_KEY, TLS, TOKEN


def ray_environment(folder: str | Path) -> Mapping[str, str]:
    """Variables for `ray start`, for drivers and for what Ray starts.

    They name files and hold no secret, so they may stand on a command line.

    Args:
        folder: of the cluster on that box, with the token and the folder tls in it.
    """
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": f"{folder}/{TOKEN}",
        "RAY_USE_TLS": "1",
        "RAY_TLS_SERVER_CERT": f"{folder}/{TLS}/{NODE}",
        "RAY_TLS_SERVER_KEY": f"{folder}/{TLS}/{NODE_KEY}",
        "RAY_TLS_CA_CERT": f"{folder}/{TLS}/{CA}",
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray keeps idle Python processes ready for tasks. We start next to none.
        "RAY_prestart_worker_first_driver": "0",
        "RAY_enable_worker_prestart": "0",
        # Ray would otherwise warn that it may stop hiding GPUs from actors that ask for none.
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        # Where prometheus_client is installed, as it is for our own metrics, Ray's autoscaler would show its
        # metrics to everybody, without key or TLS. No such port exists, so it tells its log and goes on.
        "AUTOSCALER_METRIC_PORT": "-1",
    }
