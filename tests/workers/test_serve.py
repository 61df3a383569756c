"""`python -m workers.serve`: what it says, and what ends it."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zmq

from orchestrator.launch.spawn import spawn
from tests.forks.forks import Forks, Spawn
from tests.tiny_checkpoint import write_random_checkpoint
from transport.client import WorkerClient
from transport.keys import HeadKeys, KeyPair
from transport.messages import Held, HelloReply, Pong, Shutdown, WireLimits, WorkerState
from workers.model_config import Step35Config
from workers.serve import TICK_S, Silence
from workers.spec import WorkerInfo, WorkerSpec
from workers.tiers import TierSpec

pytestmark = pytest.mark.slow

DEADLINE_S = 60.0


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(tmp_path_factory.mktemp("model"), seed=3)


@pytest.fixture
def spec(model_dir: Path, tmp_path: Path) -> WorkerSpec:
    return WorkerSpec(
        name="w",
        model="tiny",
        limits=WireLimits.for_shape(Step35Config.load(model_dir).shape("tiny")),
        tiers=(TierSpec("w", "ram", "cpu", {2: (0, 3, 7), 5: (1,)}),),
        forms={},
        dtype="float32",
        model_dir=str(model_dir),
        endpoint="tcp://127.0.0.1:*",
        pulse_endpoint="tcp://127.0.0.1:*",
        log_path=str(tmp_path / "w.log"),
    )


@contextmanager
def running(spec: WorkerSpec, spawn: Spawn) -> Iterator[Any]:
    with spawn(spec) as process:
        try:
            yield process
        finally:
            process.kill()


def says(process: Any) -> dict[str, Any]:
    """The next event."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, "it ended without a word"
    event: dict[str, Any] = json.loads(line)
    return event


def begun(process: Any) -> WorkerInfo:
    """Bound, then ready, at the same place."""
    bound, ready = says(process), says(process)
    assert (bound.pop("event"), ready.pop("event")) == ("bound", "ready")
    before, info = WorkerInfo.from_dict(bound), WorkerInfo.from_dict(ready["info"])
    assert before == replace(info, num_experts=0, held_bytes=0)
    assert (info.pid, info.num_experts) == (process.pid, 4)
    return info


@contextmanager
def head(
    endpoint: str, spec: WorkerSpec, keys: HeadKeys | None = None
) -> Iterator[tuple[WorkerClient, HelloReply]]:
    """A head's client at either socket, greeted."""
    with zmq.Context() as context:
        client = WorkerClient(context, endpoint, spec.limits, name="w", keys=keys)
        try:
            yield client, client.hello(DEADLINE_S)
        finally:
            client.close()


def test_a_worker_without_a_starter_goes_on_and_takes_any_head_with_a_key_it_knows(
    spec: WorkerSpec, tmp_path: Path
) -> None:
    """Nothing is loaded again; it ends when it is told to. Started as the program does, not forked."""
    first, second, own = KeyPair.make(), KeyPair.make(), KeyPair.make()
    spec = replace(spec, keys=own, allowed=(first.public, second.public))
    with running(spec, spawn) as process:
        info = begun(process)
        assert info.public_key == own.public
        assert process.stdin is not None
        process.stdin.close()
        for pair in (first, second):
            keys = HeadKeys(pair, own.public)
            for endpoint in (info.endpoint, info.pulse_endpoint):
                with head(endpoint, spec, keys) as (_, reply):
                    assert (reply.instance, reply.state) == (info.instance, WorkerState.READY)
                    assert (reply.num_experts, reply.text) == (4, "")
                    assert len(reply.identity) == 64
        with head(info.pulse_endpoint, spec, HeadKeys(second, own.public)) as (client, _):
            client.ping(5)
            assert isinstance(client.wait(DEADLINE_S), Pong)
            client.send(Shutdown(6))
            assert isinstance(client.wait(DEADLINE_S), Held)
        assert process.wait(DEADLINE_S) == 0
    assert "serves 4 experts" in (tmp_path / "w.log").read_text()
    assert (tmp_path / "w.log").stat().st_mode & 0o077 == 0


def test_a_worker_with_a_lifeline_ends_with_its_starter(spec: WorkerSpec, forks: Forks) -> None:
    with running(replace(spec, lifeline=True), forks.spawn) as process:
        begun(process)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(DEADLINE_S) == 0


def test_a_lifeline_counts_while_a_worker_starts(spec: WorkerSpec, forks: Forks) -> None:
    with running(replace(spec, lifeline=True), forks.spawn) as process:
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(DEADLINE_S) == 0


def test_a_worker_that_no_head_speaks_to_ends_by_itself(spec: WorkerSpec, forks: Forks) -> None:
    with running(replace(spec, linger_s=2.0), forks.spawn) as process:
        info = begun(process)
        # As long as it is spoken to, it stays.
        with head(info.pulse_endpoint, spec) as (client, _):
            until = time.monotonic() + 2.75
            while time.monotonic() < until:
                client.ping(1)
                assert isinstance(client.wait(DEADLINE_S), Pong)
                time.sleep(0.1)
        assert process.poll() is None
        assert process.wait(DEADLINE_S) == 0


def test_silence_does_not_count_while_the_worker_itself_was_stopped() -> None:
    silence = Silence(0, now_s=100.0)
    assert silence.lasts_s(0, 100.0 + TICK_S) == pytest.approx(TICK_S)
    assert silence.lasts_s(0, 1000.0) < 10 * TICK_S
    assert silence.lasts_s(1, 1000.0 + TICK_S) == 0.0
    assert silence.lasts_s(1, 1000.0 + 2 * TICK_S) == pytest.approx(TICK_S)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_sigterm_ends_a_worker_and_a_terminals_signals_do_not(
    number: signal.Signals, spec: WorkerSpec, forks: Forks
) -> None:
    with running(spec, forks.spawn) as process:
        begun(process)
        process.send_signal(number)
        if number != signal.SIGTERM:
            time.sleep(0.5)
            assert process.poll() is None
            process.terminate()
        assert process.wait(DEADLINE_S) == 0


def test_a_worker_that_cannot_load_says_why_to_its_starter_and_to_heads(
    spec: WorkerSpec, forks: Forks
) -> None:
    with running(replace(spec, model_dir="/no/such/model", linger_s=2.0), forks.spawn) as process:
        bound, failed = says(process), says(process)
        assert failed["event"] == "failed"
        assert "/no/such/model: no such file" in failed["message"]
        with head(bound["pulse_endpoint"], spec) as (_, reply):
            assert (reply.state, reply.text) == (WorkerState.FAILED, failed["message"])
        assert process.wait(DEADLINE_S) == 2


def test_a_socket_that_is_taken_is_named(spec: WorkerSpec, forks: Forks) -> None:
    with running(spec, forks.spawn) as process:
        info = begun(process)
        with running(replace(spec, endpoint=info.endpoint), forks.spawn) as second:
            failed = says(second)
            assert (failed["event"], second.wait(DEADLINE_S)) == ("failed", 2)
            assert "in use by another process" in failed["message"]
