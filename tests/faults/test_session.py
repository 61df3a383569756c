"""Whatever happens to workers of this machine, a text goes on as if nothing had.

What is not marked long is the short form, which every run of the tests does.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from threading import Timer
from unittest import mock

import psutil
import pytest

from orchestrator.generate import GenerationParams
from orchestrator.session import open_session
from tests.faults.run import MODEL, PROMPT, WORKERS, Outcome, Trial, forked, params, plan_of, trial
from tests.forks.forks import Forked, Forks, Spawn
from tests.orchestrator.processes import is_running, start, wait_until
from workers.formats.digests import RANGE_BYTES, Digests, make_digests, places, write_digests
from workers.formats.identity import model_identity, sample_offsets
from workers.formats.open_model import open_model
from workers.spec import WorkerSpec

TOKENS, AT = 32, 8
GREEDY, SEEDED, DRAFTED = params(TOKENS), params(TOKENS, seeded=True), params(TOKENS, mtp=3)
# Of a step: on an idle machine it is some seconds at most, and `benchmarks.faults` measures it.
PATIENCE_S = 60.0

Expected = Callable[[GenerationParams], tuple[int, ...]]


@pytest.fixture(scope="module")
def expected() -> Iterator[Expected]:
    """What one process gives without any worker."""
    model = open_model(MODEL)
    with open_session(model, plan_of(model, 1, 0), num_drafts=3) as session:

        @cache
        def found(wanted: GenerationParams) -> tuple[int, ...]:
            return session.generate(PROMPT, wanted).token_ids

        # A text of few different tokens would hide what goes wrong.
        assert len(set(found(SEEDED))) > TOKENS // 2
        yield found


@pytest.fixture(scope="module")
def replicated(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> Iterator[Trial]:
    """Three workers, every expert on two of them."""
    plan = plan_of(open_model(MODEL), 2)
    folder = tmp_path_factory.mktemp("two")
    with trial(plan, folder, with_cables=True, start=forked(forks), num_drafts=3) as made:
        yield made


@pytest.fixture
def well(replicated: Trial) -> Iterator[Trial]:
    """The same, when a worker may be missed, and after the test nothing harms them any more."""
    replicated.someone()
    yield replicated
    for name in WORKERS:
        replicated.behave(name)
    for cable in replicated.cables.values():
        cable.plug_in()


def check(found: Outcome, expected: tuple[int, ...]) -> None:
    assert found.token_ids == expected
    assert max(found.prefill_s, found.longest_s) < PATIENCE_S


def test_paused_for_a_moment(well: Trial, expected: Expected) -> None:
    """For less than it takes to count as dead: the process that pauses is the one that goes on."""
    well.wait_all_well()
    pids = dict(well.workers.pids)
    check(well.generate(SEEDED, {AT: lambda: pause(well, "worker-0", 1.0)}), expected(SEEDED))
    well.wait_all_well()
    assert well.workers.pids == pids


def test_cable_pulled_and_plugged_in_again(well: Trial, expected: Expected) -> None:
    cable = well.cables[well.someone()]
    check(well.generate(SEEDED, {AT: cable.pull, TOKENS - 2: cable.plug_in}), expected(SEEDED))


def test_connections_closed_at_either_end(well: Trial, expected: Expected) -> None:
    cable = well.cables[well.someone()]
    moments = {AT: cable.close_head_side, AT + 8: cable.close_worker_side}
    check(well.generate(SEEDED, moments), expected(SEEDED))


@pytest.mark.parametrize("fault", ["hang", "slow 10", "clock", "refuse", "no-memory", "full-disk"])
def test_a_worker_that(well: Trial, expected: Expected, fault: str) -> None:
    victim = well.someone()
    check(well.generate(SEEDED, {AT: lambda: well.misbehave(victim, fault)}), expected(SEEDED))


def test_killed_while_it_reads_the_prompt_and_again_while_it_loads(well: Trial, expected: Expected) -> None:
    victim = well.someone()
    before = well.workers.pids[victim]

    def kill_the_next() -> None:
        wait_until(lambda: well.workers.pids.get(victim, before) != before)
        well.kill(victim)

    found = well.generate(SEEDED, {AT: kill_the_next}, in_prefill=lambda: well.kill(victim))
    check(found, expected(SEEDED))
    # The text may end before anybody is sure of it.
    wait_until(lambda: any(f"{victim} is lost" in line for line in well.lines))


def test_without_a_replica_a_text_goes_on_from_a_disk(
    expected: Expected, tmp_path: Path, forks: Forks
) -> None:
    with trial(plan_of(open_model(MODEL), 1), tmp_path, start=forked(forks)) as made:
        found = made.generate(SEEDED, {TOKENS - 8: lambda: made.kill("worker-0")})
        check(found, expected(SEEDED))
        assert made.events()["rescued"] > 0


def apart(forks: Forks, folder: Path) -> Callable[[Path], Spawn]:
    """Workers that read `folder`/here, but worker-1, a box of its own: that reads `folder`/there."""

    def start(faults: Path) -> Spawn:
        spawn_here = forked(forks)(faults)

        def spawn(spec: WorkerSpec) -> Forked:
            model = folder / ("there" if spec.name == "worker-1" else "here")
            return spawn_here(replace(spec, model_dir=str(model)))

        return spawn

    return start


def test_a_box_whose_files_are_replaced_is_lost_and_the_text_goes_on(
    expected: Expected, tmp_path: Path, forks: Forks
) -> None:
    for name in ("here", "there"):
        shutil.copytree(MODEL, tmp_path / name)
    weights = tmp_path / "there" / "model.safetensors"
    other = tmp_path / "other"
    other.write_bytes(bytes(weights.stat().st_size))

    def put_another_there() -> None:
        other.rename(weights)

    plan = plan_of(open_model(tmp_path / "here"), 1)
    with trial(plan, tmp_path, model_path=tmp_path / "here", start=apart(forks, tmp_path)) as made:
        check(made.generate(SEEDED, {AT: put_another_there}), expected(SEEDED))
        lost: list[str] = []

        def is_seen() -> bool:
            """Files are looked at once a second, while they are read."""
            check(made.generate(SEEDED), expected(SEEDED))
            lost[:] = [line for line in made.lines if line.startswith("worker worker-1 is lost: it refused")]
            return bool(lost)

        wait_until(is_seen)
        assert len(lost) == 1
        assert "another file took its place" in lost[0]
        assert lost[0].endswith("; the text goes on, others read its experts from their model files")


def test_a_box_whose_files_differ_in_a_byte_is_named_and_left_out(
    expected: Expected, tmp_path: Path, forks: Forks
) -> None:
    """Samples do not show it. Both boxes have digests of all they have, and their two differ."""
    for name in ("here", "there"):
        shutil.copytree(MODEL, tmp_path / name, ignore=shutil.ignore_patterns("*digests*"))
    weights = tmp_path / "there" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    place = (sample_offsets(len(content))[7] + sample_offsets(len(content))[8]) // 2
    content[place] ^= 1
    weights.write_bytes(content)
    for name in ("here", "there"):
        model = tmp_path / name
        write_digests(make_digests(model, Digests(RANGE_BYTES, ()), lambda _: None), places(model)[0])
    here = model_identity(tmp_path / "here")
    assert here.hex == model_identity(tmp_path / "there").hex

    plan = replace(plan_of(open_model(tmp_path / "here"), 2), digests=here.digests)
    with trial(plan, tmp_path, model_path=tmp_path / "here", start=apart(forks, tmp_path)) as made:
        assert made.generate(SEEDED).token_ids == expected(SEEDED)
        (line,) = (line for line in made.lines if "refused" in line)
        assert line.startswith("worker worker-1 refused: it serves bytes of the model files ")
        standing = made.session.standing()
        assert {standing.view.names[worker] for worker in standing.dead} == {"worker-1"}


@pytest.mark.long
@pytest.mark.parametrize("wanted", [GREEDY, SEEDED, DRAFTED])
def test_killed_between_tokens(well: Trial, expected: Expected, wanted: GenerationParams) -> None:
    victim = well.someone()
    check(well.generate(wanted, {AT: lambda: well.kill(victim)}), expected(wanted))


@pytest.mark.long
@pytest.mark.parametrize("wanted", [GREEDY, SEEDED, DRAFTED])
def test_dies_in_its_computation(well: Trial, expected: Expected, wanted: GenerationParams) -> None:
    victim = well.someone()
    check(well.generate(wanted, {AT: lambda: well.misbehave(victim, "die")}), expected(wanted))


@pytest.mark.long
def test_two_killed_at_once(well: Trial, expected: Expected) -> None:
    """A third of the experts then has no worker, until one is back or another reads them from its disk."""
    well.wait_all_well()
    found = well.generate(SEEDED, {AT: lambda: well.kill("worker-0", "worker-1")})
    check(found, expected(SEEDED))


@pytest.mark.long
def test_one_after_another(well: Trial, expected: Expected) -> None:
    for name in ("worker-0", "worker-1", "worker-2", "worker-0"):
        well.wait_all_well()
        check(well.generate(SEEDED, {AT: lambda name=name: well.kill(name)}), expected(SEEDED))  # type: ignore[misc]


@pytest.mark.long
def test_paused_for_long_and_then_taken_back(well: Trial, expected: Expected) -> None:
    well.wait_all_well()
    pids = dict(well.workers.pids)
    check(well.generate(SEEDED, {AT: lambda: pause(well, "worker-0", 10.0)}), expected(SEEDED))
    check(well.generate(SEEDED), expected(SEEDED))
    well.wait_all_well()
    assert well.workers.pids == pids


@pytest.mark.long
def test_cable_pulled_for_good(well: Trial, expected: Expected) -> None:
    check(well.generate(SEEDED, {AT: well.cables[well.someone()].pull}), expected(SEEDED))
    check(well.generate(SEEDED), expected(SEEDED))


@pytest.mark.long
def test_cable_pulled_for_three_seconds(well: Trial, expected: Expected) -> None:
    cable = well.cables[well.someone()]

    def pull() -> None:
        cable.pull()
        Timer(3.0, cable.plug_in).start()

    check(well.generate(SEEDED, {AT: pull}), expected(SEEDED))


@pytest.mark.long
def test_killed_by_the_kernel_for_its_memory(well: Trial, expected: Expected) -> None:
    victim = well.someone()
    before = well.workers.pids[victim]
    with memory_group(before, 64_000_000):
        found = well.generate(SEEDED, {AT: lambda: well.misbehave(victim, "eat-memory")})
        check(found, expected(SEEDED))
        # Or it may have been refused the memory, and would go on.
        wait_until(lambda: not is_running(before))


@pytest.mark.long
def test_the_head_paused_and_its_clock_put_forward(well: Trial, expected: Expected) -> None:
    """A box that sleeps and wakes: nobody is taken for dead because the head did not listen."""
    well.wait_all_well()
    before = well.events()["died"]
    real = time.time

    def sleep() -> None:
        pid = os.getpid()
        subprocess.run(["sh", "-c", f"(sleep 4; kill -CONT {pid}) & kill -STOP {pid}"], check=True)

    with mock.patch("time.time", side_effect=lambda: real() + 86_400):
        found = well.generate(SEEDED, {AT: sleep})
    assert found.token_ids == expected(SEEDED)
    assert well.events()["died"] == before


@pytest.mark.long
def test_nonsense_is_found_by_spot_checks(expected: Expected, tmp_path: Path) -> None:
    with trial(plan_of(open_model(MODEL), 2), tmp_path, spot_check=1.0) as made:
        found = made.generate(SEEDED, {AT: lambda: made.misbehave("worker-1", "nonsense")})
        assert found.token_ids == expected(SEEDED)
        assert made.session.report().liars == ("worker-1",)
        assert any("worker-1 gives wrong numbers" in line for line in made.lines)


@pytest.mark.long
def test_without_replicas_one_after_another_and_while_its_experts_move(
    expected: Expected, tmp_path: Path
) -> None:
    """The second is killed while it takes on what the first held."""
    with trial(plan_of(open_model(MODEL), 1), tmp_path) as made:
        moments = {AT: lambda: made.kill("worker-0"), AT + 1: lambda: made.kill("worker-1")}
        check(made.generate(SEEDED, moments), expected(SEEDED))
        made.wait_all_well(60)
        check(made.generate(SEEDED, {AT: lambda: made.kill("worker-2")}), expected(SEEDED))


@pytest.mark.long
def test_the_head_killed_and_started_again() -> None:
    """Its workers end with it, and the next run is not disturbed."""
    command = ["-m", "orchestrator.cli.main", "generate", "--model", str(MODEL), "--token-ids", "1,2,3"]
    command += ["--workers", "2", "--ignore-eos", "--max-tokens", "200", "--temperature", "0.5"]
    first = start(*command)
    assert first.stdout is not None
    begun = first.stdout.read(40)
    children = psutil.Process(first.pid).children(recursive=True)
    assert len(children) >= 2
    first.kill()
    wait_until(lambda: not any(is_running(child.pid) for child in children), 15)
    second = start(*command)
    text, errors = second.communicate(timeout=120)
    assert second.returncode == 0, errors
    assert text.startswith(begun)
    assert len(text) > 300


def pause(made: Trial, name: str, pause_s: float) -> None:
    """Stop a worker, and let it go on after a while, whatever this process does."""
    pid = made.workers.pids[name]
    made.pause(name)
    subprocess.Popen(["sh", "-c", f"sleep {pause_s}; kill -CONT {pid}"])


@contextmanager
def memory_group(pid: int, more_bytes: int) -> Iterator[None]:
    """A process that the kernel ends as soon as it takes so much memory more than it has now."""
    group = Path(f"/sys/fs/cgroup/memory/potluck-test-{pid}")
    try:
        group.mkdir()
        (group / "cgroup.procs").write_text(str(pid))
        used = int((group / "memory.usage_in_bytes").read_text())
        (group / "memory.limit_in_bytes").write_text(str(used + more_bytes))
    except OSError as error:
        with suppress(OSError):
            group.rmdir()
        pytest.skip(f"no memory groups of the first version here: {error}")
    try:
        yield
    finally:
        for each in (group / "cgroup.procs").read_text().split():
            os.kill(int(each), signal.SIGKILL)
        wait_until(lambda: not (group / "cgroup.procs").read_text().split())
        group.rmdir()
