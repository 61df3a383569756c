"""Whose process one is: this cluster's, another's, or a user's own."""

from __future__ import annotations

from pathlib import Path

from orchestrator.cluster.here import Traces, folders_of

FOLDER = "/home/anna/.potluck/home"
SESSION = "/tmp/ray/session_1"
RAYLET = (
    "/venv/lib/ray/core/src/ray/raylet/raylet",
    f"--session_dir={SESSION}",
    "--gcs-address=10.0.0.1:6379",
)


def test_what_ray_and_we_started_counts_and_a_pager_does_not() -> None:
    assert Traces(RAYLET, ()).is_of_ray_or_ours()
    assert Traces(("ray::DashboardAgent",), ()).is_of_ray_or_ours()
    assert Traces(("/venv/bin/python", "-P", "-m", "workers.serve"), ()).is_of_ray_or_ours()
    assert not Traces(
        ("less", f"{FOLDER}/worker/worker.log"), (f"{FOLDER}/worker/worker.log",)
    ).is_of_ray_or_ours()
    assert not Traces((), ()).is_of_ray_or_ours()


def test_a_cluster_is_told_from_one_whose_name_begins_alike() -> None:
    mine = Traces(("raylet", f"--log_dir={FOLDER}/ray/logs"), ())
    agent = Traces(("ray::RuntimeEnvAgent",), (f"{FOLDER}/ray/logs/agent.log",))
    other = Traces(("raylet", f"--log_dir={FOLDER}-2/ray/logs"), ())
    assert mine.mentions([FOLDER])
    assert agent.mentions([FOLDER])
    assert not other.mentions([FOLDER])
    assert Traces(("python", FOLDER), ()).mentions([FOLDER])


def test_the_session_of_a_ray_that_was_started_by_hand_is_found_by_its_address() -> None:
    traces = [Traces(RAYLET, ())]
    assert folders_of(Path(FOLDER), "10.0.0.1:6379", traces) == {FOLDER, SESSION}
    assert folders_of(Path(FOLDER), "10.0.0.1:6380", traces) == {FOLDER}
