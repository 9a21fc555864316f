"""Kills and signals at any moment, and two processes on one folder."""

import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import Process
from run_cases import rows_of
from short_runs import (
    MOMENTS,
    SAVE_EVERY,
    Place,
    Promise,
    differences,
    last_row,
    moment,
    newest_step,
)

from lstm_jax.training.run import RunFolder
from lstm_jax.training.task import Task

LONGEST = {"start": 0.5, "compile": 1.0, "step": 0.01, "evaluation": 0.05, "sample": 0.1,
           "save": 0.05, "deletion": 0.002, "end": 0.3}  # fmt: skip
"""A kill comes at a random moment of so many seconds after something has begun."""


def is_killed(
    process: Process, place: Place, run: str, at: str, random: np.random.Generator
) -> bool:
    """Waits for some steps, something, and a random while; False if the process ends before."""
    steps = int(random.integers(0, 3 * SAVE_EVERY))
    if at not in ("start", "compile"):
        process.wait_until(moment("compile", place, run, process))
        last = min(newest_step(place.path / run) + steps, place.steps)
        process.wait_until(lambda: last_row(place.path / run) >= last)
    is_at, is_over = moment(at, place, run, process), moment("end", place, run, process)
    if not process.wait_until(lambda: is_at() or (at != "start" and is_over())):
        return False
    time.sleep(random.uniform(0, LONGEST[at]))
    if process.has_ended:
        return False
    process.kill()
    return True


@pytest.mark.parametrize(
    ("kills", "a_run"),
    [(1, 1), pytest.param(30, 10, marks=[pytest.mark.slow, pytest.mark.beyond_ci])],
)
def test_a_run_killed_at_random_moments_ends_as_one_left_alone(
    kills: int, a_run: int, place: Place, whole: Path, task: Task, promise: Promise,
    is_thorough: bool,
) -> None:  # fmt: skip
    kills = 100 if is_thorough and kills > 1 else kills
    random, moments, lost = np.random.default_rng(kills), Counter[str](), []
    failures, number = list[str](), 0
    while moments.total() < kills:
        number += 1
        name, before = f"killed-{kills}-{number}", moments.total()
        for _ in range(min(a_run, kills - before)):
            process, at = place.begun(name), str(random.choice(MOMENTS)) if kills > 1 else "save"
            if not is_killed(process, place, name, at, random):
                break  # it had come to its end
            moments[at] += 1
            lost.append(max(0, last_row(place.path / name) - newest_step(place.path / name)))
            if lost[-1] > SAVE_EVERY:
                failures.append(f"{lost[-1]} steps were lost, in {at}")
        found = differences(whole, place.finished(name), task)
        found += [str(path) for path in (place.path / name).rglob("*.damaged*")]
        failures += [f"{name}: {found}"] if found else []
    if kills == 1:
        assert failures == []
        return
    seen = ", ".join(f"{at} {moments[at]}" for at in MOMENTS if at in moments)
    promise(
        "SIGKILL at a random moment",
        kills,
        failures,
        "parameters, optimizer, rows of metrics and samples equal byte for byte; at or after the "
        f"beginning of {seen}; at most {max(lost)} steps lost, and one save interval is "
        f"{SAVE_EVERY}",
    )


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda each: each.name)
def test_a_signal_at_any_moment_saves_the_state(
    number: signal.Signals, place: Place, whole: Path, task: Task, promise: Promise
) -> None:
    failures, longest = [], 0.0
    for at in MOMENTS:
        name = f"{number.name}-{at}"
        process = place.reached(name, at)
        time.sleep(0.05 if at == "start" else 0)
        began = time.monotonic()
        process.signal(number)
        code, seconds = process.wait(), time.monotonic() - began
        most = 60 if at in ("start", "compile") else 10
        longest = longest if most == 60 else max(longest, seconds)
        found = [f"exit code {code}"] if code != 128 + number else []
        found += [f"it took {seconds:.1f} s"] if seconds > most else []
        reached, saved = last_row(place.path / name), newest_step(place.path / name)
        # The row of a step whose evaluation is given up is written when the run goes on.
        if saved - reached not in (0, 1):
            found.append(f"step {reached} was reached, step {saved} saved")
        found += differences(whole, place.finished(name), task)
        failures += [f"in {at}: {found}"] if found else []
    promise(
        f"{number.name} at any moment",
        len(MOMENTS),
        failures,
        f"one in each of {', '.join(MOMENTS)}; exit code {128 + number}; the state of the last "
        f"step saved; within {longest:.1f} s, or once the first step is compiled; resumed exactly",
    )


@pytest.mark.slow
def test_a_second_signal_ends_it(place: Place, whole: Path, task: Task, promise: Promise) -> None:
    found, moments = list[str](), ("step", "evaluation", "save", "deletion")
    for when in moments:
        process = place.reached(f"second-{when}", when)
        process.signal(signal.SIGTERM)
        time.sleep(0.02)
        process.signal(signal.SIGTERM)
        code, said = process.wait(), process.errors.splitlines()
        found += [] if code == 128 + signal.SIGTERM else [f"{when}: exit code {code}"]
        found += [] if len(said) <= 2 else [f"{when}: {said}"]
        found += differences(whole, place.finished(f"second-{when}"), task)
    seen = (
        f"20 ms after the first, in each of {', '.join(moments)}; exit code 143; one line; earlier "
        "checkpoints whole; resumed exactly"
    )
    promise("a second SIGTERM", len(moments), found, seen)


STYLES: list[dict[str, Any]] = [
    {"color": "#000000", "linewidth": 4, "alpha": 0.35},
    {"color": "#d55e00", "linewidth": 1.6, "linestyle": "--"},
    {"color": "#0072b2", "linewidth": 1.2, "linestyle": ":", "marker": "o", "markersize": 3},
]
"""A wide line below, broken ones on it: all three are seen where they are the same."""


@pytest.mark.slow
def test_the_curves_of_such_runs_are_one(
    place: Place, whole: Path, tmp_path: Path, request: pytest.FixtureRequest, is_thorough: bool
) -> None:
    runs = {"left alone": whole, "preempted (SIGTERM) and resumed": place.path / "SIGTERM-step"}
    file = tmp_path / "reliability.png"
    if is_thorough:
        runs["killed again and again (SIGKILL)"] = place.path / "killed-100-1"
        file = request.config.getoption("--table").parent / "images" / file.name
    if not all(run.exists() for run in runs.values()):
        pytest.skip("the runs are made by the tests of kills and signals")
    figure = pytest.importorskip("matplotlib.figure").Figure((7.5, 3.6), 200, layout="constrained")
    axes = figure.subplots()
    for (name, run), style in zip(runs.items(), STYLES, strict=False):
        losses = {row["step"]: row["loss"] for row in rows_of(run)}
        assert losses == {row["step"]: row["loss"] for row in rows_of(whole)}
        axes.plot(*zip(*losses.items(), strict=True), label=name, **style)
    axes.set(xlabel="step", ylabel="training loss\n(nats per character)")
    axes.set_title("largest difference: 0", fontsize=9, loc="right")
    axes.legend(frameon=False, fontsize=9)
    figure.savefig(file)


@pytest.mark.slow
def test_a_second_one_is_refused(place: Place, whole: Path, task: Task, promise: Promise) -> None:
    first = place.reached("shared", "step")
    first.signal(signal.SIGSTOP)  # it holds the folder for as long as it takes
    second = place.begun("shared", notes="second")
    found = [] if second.wait() == 2 else ["the second one was not refused"]
    if "another process is training in" not in second.errors or second.errors.count("\n") > 1:
        found.append(f"it said: {second.errors!r}")
    first.signal(signal.SIGCONT)
    found += [] if first.wait() == 0 else [f"the first one ended: {first.errors}"]
    found += differences(whole, place.path / "shared", task)
    seen = "refused by one line, exit code 2; the first one's run as if alone"
    promise("a second process on the folder", 1, ["; ".join(found)] if found else [], seen)


@pytest.mark.slow
def test_a_stale_lock_is_nothing(place: Place, whole: Path, task: Task, promise: Promise) -> None:
    place.reached("stale", "step").kill()
    assert RunFolder(place.path / "stale").lock.exists()
    found = differences(whole, place.finished("stale"), task)
    seen = "not in the way: the operating system freed it"
    promise("the lock of a killed process", 1, found, seen)
