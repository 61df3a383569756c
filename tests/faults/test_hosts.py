"""Whatever happens to hosts of a cluster that `potluck up` started, a text goes on; the long form."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks.cluster_of_hosts import write_cluster_file
from benchmarks.namespaces import Host
from tests.launcher.hosts import hosts_or_skip
from tests.orchestrator.processes import wait_until

pytestmark = pytest.mark.long

MODEL = Path(__file__).parents[2] / "models" / "potluck-tiny"
PROMPT = "The following options are"
TOKENS = 300
AT_CHARACTERS = 200
# Five seconds, where the machine has time for it.
PATIENCE_S = 60.0
Hurt = Callable[["Cluster"], None]


class Cluster:
    """Three hosts, the first of them the head, each expert on two boxes."""

    def __init__(self, hosts: tuple[Host, ...], file: Path) -> None:
        self.hosts = hosts
        self.file = file

    @property
    def head(self) -> Host:
        return self.hosts[0]

    def up(self) -> None:
        self.head.run(f"potluck up {self.file} --model {MODEL} --survive 1", timeout_s=240)

    def down(self) -> None:
        self.head.run(f"potluck down {self.file}", timeout_s=120, check=False)

    def pid(self, host: Host, words: str) -> int:
        """Of the process there whose command line has these words."""
        return next(pid for pid, line in host.pids().items() if words in line)

    def kill(self, host: Host, words: str) -> None:
        subprocess.run(["kill", "-9", str(self.pid(host, words))], check=True)

    def generate(self, hurt: Hurt | None = None) -> tuple[str, float, str]:
        """The text, the longest wait for more of it after the harm, and what was told."""
        command = (
            f"potluck generate --model {MODEL} --cluster {self.file} --prompt '{PROMPT}' --ignore-eos "
            f"--max-tokens {TOKENS} --temperature 0.7 --seed 3"
        )
        process = self.head.popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stderr is not None
        told: list[str] = []
        errors = process.stderr
        listening = threading.Thread(target=lambda: told.append(errors.read()), daemon=True)
        listening.start()
        text, longest_s, before_s = "", 0.0, time.monotonic()
        hurting: threading.Thread | None = None
        while part := process.stdout.read(1):
            now_s = time.monotonic()
            if text:
                longest_s = max(longest_s, now_s - before_s)
            text, before_s = text + part, now_s
            if hurt is not None and hurting is None and len(text) >= AT_CHARACTERS:
                hurting = threading.Thread(target=hurt, args=(self,))
                hurting.start()
        process.wait()
        listening.join()
        if hurting is not None:
            hurting.join()
        assert process.returncode == 0, told[0]
        return text, longest_s, told[0]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with hosts_or_skip(3, "10.38.1.0/24") as hosts:
        made = Cluster(hosts, write_cluster_file(hosts[0].home, hosts, name="faults", port=23839))
        made.up()
        yield made
        made.down()


@pytest.fixture(scope="module")
def expected(cluster: Cluster) -> str:
    return cluster.generate()[0]


def kill_the_worker(cluster: Cluster) -> None:
    cluster.kill(cluster.hosts[1], "workers.serve")


def kill_the_actor(cluster: Cluster) -> None:
    cluster.kill(cluster.hosts[1], "ray::NodeActor")


def kill_the_raylet(cluster: Cluster) -> None:
    cluster.kill(cluster.hosts[1], "raylet/raylet")


def kill_rays_register(cluster: Cluster) -> None:
    cluster.kill(cluster.head, "gcs_server")


def cut_for_a_moment(cluster: Cluster) -> None:
    cluster.hosts[2].cut()
    time.sleep(3)
    cluster.hosts[2].restore()


def suspend_for_a_while(cluster: Cluster) -> None:
    cluster.hosts[2].suspend()
    time.sleep(10)
    cluster.hosts[2].resume()


def close_on_one_side(cluster: Cluster) -> None:
    closed = cluster.head.run(f"ss -K -t dst {cluster.hosts[1].address}").stdout
    assert cluster.hosts[1].address in closed, "this kernel closes no sockets (CONFIG_INET_DIAG_DESTROY)"


# The last ones leave a cluster that is not whole.
HARMS = (
    kill_the_worker,
    kill_the_actor,
    cut_for_a_moment,
    suspend_for_a_while,
    close_on_one_side,
    kill_the_raylet,
    kill_rays_register,
)


@pytest.mark.parametrize("hurt", HARMS)
def test_a_text_goes_on(cluster: Cluster, expected: str, hurt: Hurt) -> None:
    text, longest_s, told = cluster.generate(hurt)
    assert text == expected, told
    assert longest_s < PATIENCE_S, told


def test_and_when_a_box_is_cut_off_for_good(cluster: Cluster, expected: str) -> None:
    text, longest_s, told = cluster.generate(lambda made: made.hosts[2].cut())
    assert text == expected, told
    assert longest_s < PATIENCE_S, told
    assert "is lost" in told
    # And it is taken back when it is there again.
    cluster.hosts[2].restore()
    wait_until(lambda: "is lost" not in cluster.generate()[2], 60)


def test_and_when_a_box_is_unplugged(cluster: Cluster, expected: str) -> None:
    text, longest_s, told = cluster.generate(lambda made: made.hosts[2].kill())
    assert text == expected, told
    assert longest_s < PATIENCE_S, told
