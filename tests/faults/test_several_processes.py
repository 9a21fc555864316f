"""A run of several processes: the same numbers, one end for all, and nothing lost.

They are JAX's, on this machine, and reach each other over 127.0.0.1 by gloo.
"""

import os
import resource
import signal
import socket
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from processes import Process
from run_cases import TEXT, rows_of, saved_state, unequal
from short_runs import FLAGS, SAVE_EVERY, Promise, is_saving, last_row, newest_step, task_of
from tasks import write_data

from lstm_jax.cli.console import START_AGAIN
from lstm_jax.training.run import RunFolder

pytestmark = pytest.mark.slow

_SPLITTING = "--xla_cpu_multi_thread_eigen=false --xla_force_host_platform_device_count"
ODD = "tests/faults/odd_train.py"
STEPS = 40
QUICKLY = 2.0
"""Seconds within which all are to end, of which one ends; a process that is stopped needs most."""


class Party:
    """Processes that begin a run together, or go on with it, but for one that may be absent.

    There is a device for each of them unless said otherwise; `own` has arguments of one of them.
    """

    def __init__(
        self, run: Path, arguments: Sequence[str], processes: int = 2, devices: int | None = None,
        *, own: dict[int, list[str]] | None = None, absent: int | None = None,
        command: str = "train.py",
    ) -> None:  # fmt: skip
        devices = devices or processes
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        given = [*arguments, "--run-dir", str(run), "--devices", str(devices)]
        given += ["--resume"] * RunFolder(run).config.exists()
        if processes > 1:
            given += ["--coordinator", f"127.0.0.1:{port}", "--dead-timeout", "1"]
            given += ["--process-count", str(processes)]

        def member(number: int) -> Process:
            place = ["--process-id", str(number)] if processes > 1 else []
            return Process(
                command,
                [*given, *place, *(own or {}).get(number, [])],
                run.with_name(f"{run.name}-{number}"),
                environment={"XLA_FLAGS": f"{_SPLITTING}={devices // processes}"},
            )

        self.run = run
        self.members = {n: member(n) for n in range(processes) if n != absent}

    def wait(self) -> dict[int, int]:
        """The exit codes of all."""
        return {number: member.wait(120) for number, member in self.members.items()}

    def finish(self) -> Path:
        """The run, trained to its end."""
        assert set(self.wait().values()) == {0}, self.errors()
        return self.run

    def errors(self) -> str:
        """What they have printed on standard error."""
        return "".join(member.errors for member in self.members.values())

    def reach(self, step: int) -> bool:
        """Waits for a row of metrics."""
        return self.members[0].wait_until(lambda: last_row(self.run) >= step)


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    data = tmp_path_factory.mktemp("data") / "text.txt"
    data.write_text(TEXT, encoding="utf-8")
    return ["--data", str(data), *FLAGS, "--steps", str(STEPS)]


@pytest.fixture(scope="module")
def alone(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two processes that were left alone."""
    return Party(tmp_path_factory.mktemp("alone") / "run", arguments).finish()


def losses(run: Path) -> np.ndarray:
    return np.array([row["loss"] for row in rows_of(run)])


RARELY = ["--evaluate-every", "100", "--sample-every", "0", "--checkpoint-every", "0"]


ROWS = "--embedding-size 12 --widths 2"
WHOLE_RUNS = {
    "docs": ("text.txt", "--sequence-length 16 --cell lstm --dropout 0.3"),
    "poems": ("poems.txt", f"{ROWS} --length 12"),
    "reviews": ("reviews.tsv", f"{ROWS} --length 8 --dense-size 5"),
}


@pytest.mark.parametrize(
    "system",
    ["docs", *(pytest.param(each, marks=pytest.mark.beyond_ci) for each in ("poems", "reviews"))],
)
def test_losses_do_not_depend_on_how_the_devices_are_spread(system: str, tmp_path: Path) -> None:
    """Two hundred steps with dropout, on 1 x 1, 2 x 2 and 4 x 1 processes x devices."""
    file, own = WHOLE_RUNS[system]
    common = "--hidden-size 12 --batch-size 8 --steps 200 --log-every 1 --intervals steps"
    flags = [*own.split(), *common.split(), "--patience", "0", *RARELY]
    arguments = [system, "--data", str(write_data(tmp_path) / file), *flags]
    one, two, four = (
        Party(tmp_path / str(processes), arguments, processes, devices).finish()
        for processes, devices in ((1, 1), (2, 4), (4, 4))
    )
    assert rows_of(two) == rows_of(four)
    assert len(losses(one)) == 200
    assert np.abs(losses(two) - losses(one)).max() <= 2e-6


@pytest.mark.beyond_ci
def test_whichever_is_killed_the_other_ends_and_nothing_is_lost(
    arguments: list[str], alone: Path, tmp_path: Path, promise: Promise
) -> None:
    """A quarter of the kills come during a save; a run that comes to its end makes way for one."""
    random, kills = np.random.default_rng(0), 20
    failures, slowest, lost, runs = [], 0.0, 0, [tmp_path / "0"]
    for kill in range(kills):
        run = runs[-1]
        party = Party(run, arguments)
        first = party.members[0]
        assert first.wait_until(lambda first=first: bool(first.output))
        party.reach(min(last_row(run) + int(random.integers(1, 8)), STEPS))
        if kill % 4 == 0:
            first.wait_until(lambda run=run: is_saving(run))
        else:
            time.sleep(random.uniform(0, 0.05))
        victim = int(random.integers(2))
        party.members[victim].kill()
        began = time.monotonic()
        code = party.members[1 - victim].wait(60)
        slowest = max(slowest, time.monotonic() - began)
        is_over = last_row(run) == STEPS
        if code != START_AGAIN and not (is_over and code == 0):
            failures.append(f"kill {kill}: {code}: {party.errors()}")
        lost = max(lost, last_row(run) - newest_step(run))
        if is_over:
            runs.append(tmp_path / str(len(runs)))
    for run in runs:
        Party(run, arguments).finish()
        failures += [f"{run.name} has other rows"] * (rows_of(run) != rows_of(alone))
    failures += [f"{lost} steps were lost"] * (lost > SAVE_EVERY)
    failures += [f"{slowest:.1f} s until the other ended"] * (slowest > QUICKLY)
    promise(
        "one of two processes is killed", kills, failures,
        f"the other ended with {START_AGAIN} within {slowest:.1f} s; at most {lost} steps lost",
    )  # fmt: skip


def test_a_signal_to_one_stops_all_and_any_number_goes_on(
    arguments: list[str], alone: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    for processes, receiver, number, step in ((2, 0, signal.SIGTERM, 7), (4, 1, signal.SIGINT, 17)):
        party = Party(run, arguments, processes)
        party.reach(step)
        party.members[receiver].signal(number)
        assert party.wait() == dict.fromkeys(party.members, 128 + number), party.errors()
        stopped_at = newest_step(run)
        assert stopped_at - 1 <= last_row(run) <= stopped_at  # an evaluation may be cut short
    Party(run, arguments, 1).finish()
    assert [row["step"] for row in rows_of(run)] == [*range(1, STEPS + 1)]
    assert np.abs(losses(run) - losses(alone)).max() <= 2e-6


def test_any_number_of_processes_saves_it(arguments: list[str], tmp_path: Path) -> None:
    """Saved by four processes, then restored and saved by fewer, one, and by more, two."""
    split = ["--shard-state", "all", "--hidden-size", "16", "--steps", "6", *RARELY]
    run = Party(tmp_path / "run", [*arguments, *split], 4).finish()
    record = (RunFolder(run).checkpoints / "6" / "_CHECKPOINT_METADATA").read_text()
    assert record.count("parts") == 2 + 15  # the carry, and what --shard-state splits
    for processes in (1, 2):
        Party(run, ["--saves-again"], processes, command=ODD).finish()
    first, *others = (
        saved_state(run, task_of(run), step)
        for step in sorted(int(path.name) for path in RunFolder(run).checkpoints.iterdir())
    )
    assert [unequal(other, first) for other in others] == [[], []]


def test_a_save_that_fails_in_one_fails(arguments: list[str], alone: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    party = Party(run, arguments)
    first, second = party.members.values()
    party.reach(6)
    own = second.limit(resource.RLIMIT_FSIZE, 0)
    assert first.wait_until(lambda: b"was not saved" in first.output)
    good = newest_step(run)
    second.limit(resource.RLIMIT_FSIZE, own)
    party.finish()
    assert newest_step(run) == STEPS > good
    assert b"process 1: " in first.output
    assert rows_of(run) == rows_of(alone)


def test_whatever_ends_one_the_other_ends_and_nothing_is_lost(
    arguments: list[str], alone: Path, tmp_path: Path
) -> None:
    """Killed during a save, ended by an error, or stopped."""
    run = tmp_path / "run"
    killed, other = Party(run, arguments).members.values()
    assert killed.wait_until(lambda: is_saving(run))
    killed.kill()
    assert other.wait(60) == START_AGAIN
    assert last_row(run) - newest_step(run) <= SAVE_EVERY
    for number, step, error, code in ((1, 9, "OSError", 2), (0, 19, "RuntimeError", 1)):
        own = {number: ["--fails-at", str(step), error]}
        party = Party(run, arguments, own=own, command=ODD)
        failed, other = party.members[number], party.members[1 - number]
        assert failed.wait(60) == code
        began = time.monotonic()
        assert other.wait(60) == START_AGAIN
        assert time.monotonic() - began < QUICKLY
        assert f"no data for step {step}" in failed.errors
        assert "another process of this run ended" in other.errors
        assert step - SAVE_EVERY <= newest_step(run) <= step
    party = Party(run, arguments)
    party.reach(26)
    other, stopped = party.members.values()
    stopped.signal(signal.SIGSTOP)
    assert other.wait(60) == START_AGAIN
    assert "another process" in other.errors.splitlines()[-1]
    stopped.kill()
    assert rows_of(Party(run, arguments).finish()) == rows_of(alone)


@pytest.mark.parametrize(
    ("own", "code", "others", "says"),
    [
        (["--data", "MISSING"], 2, START_AGAIN, "another process of this run ended"),
        (["--data", "OTHER"], 2, 2, "the data differ between the processes"),
        (["--learning-rate", "0.5"], 2, 2, "the settings differ between the processes"),
        (["--data", "FIFO"], START_AGAIN, START_AGAIN, "no step was done in 5 s"),
    ],
    ids=["no file", "other data", "other settings", "stuck"],
)
def test_what_is_wrong_with_one_ends_all_with_a_line(
    own: list[str], code: int, others: int, says: str, arguments: list[str], tmp_path: Path
) -> None:
    (tmp_path / "OTHER").write_text(TEXT + "More.", encoding="utf-8")
    os.mkfifo(tmp_path / "FIFO")
    own = [str(tmp_path / each) if each.isupper() else each for each in own]
    party = Party(tmp_path / "run", [*arguments, "--stuck-timeout", "5"], own={1: own})
    assert party.wait() == {0: others, 1: code}
    assert says in party.members[0].errors
    assert len(party.members[1].errors.splitlines()) == 1
    assert "Traceback" not in party.errors()


def test_one_that_never_starts_is_given_up(arguments: list[str], tmp_path: Path) -> None:
    party = Party(tmp_path / "run", [*arguments, "--start-timeout", "5"], absent=1)
    assert party.wait() == {0: START_AGAIN}
    assert "did not find each other within 5 s" in party.errors()
    assert not (tmp_path / "run").exists()
