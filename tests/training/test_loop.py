"""The loop: a run cut short and resumed is the run left alone, bit for bit."""

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from core_cases import cases
from run_cases import rows_of, saved_state, unequal
from tasks import Silent, config, run, task

from lstm_jax.systems.base import OptimizerConfig, SampleConfig
from lstm_jax.training import log, loop
from lstm_jax.training.checkpoint import CheckpointStore
from lstm_jax.training.log import read_rows
from lstm_jax.training.optimizer import averaged
from lstm_jax.training.run import RunFolder
from lstm_jax.training.state import train_step
from lstm_jax.training.task import first_state, heldout_metrics

SAMPLING = config(
    sample_every=10, sample_prompts=("7 times", "and"), sample=SampleConfig(length=20, top_n=5)
)
HASTY = config(
    evaluate_every=2, checkpoint_every=0, patience=3,
    optimizer=OptimizerConfig(learning_rate=3.0, clip_norm=None),
)  # fmt: skip
"""A learning rate that ruins the model: the held-out loss is best at first."""
AVERAGING = config(
    evaluate_every=2, checkpoint_every=0, weight_drop=0.2,
    optimizer=OptimizerConfig(method="sgd", learning_rate=20.0, average_after=2),
)  # fmt: skip
"""Steps so large that the held-out loss soon goes up and down."""


def number(checkpoint: Path) -> int:
    return int(checkpoint.name)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Silent]:
    """A run that was left alone."""
    path = tmp_path_factory.mktemp("whole") / "run"
    return path, *run(path, task(SAMPLING))


@pytest.mark.parametrize(
    ("cuts", "is_evaluated"),
    [
        ([(0, 0), (0, 0)], False),  # before the first step: no compilation is waited for
        ([(1, 0), (6, 0)], False),
        ([(11, 0), (17, 0)], False),
        # In an evaluation, without and with a checkpoint due besides.
        *(([(step, asked)], False) for step in (10, 30) for asked in (0, 3)),
        *(([(step, asked) for asked in (2, 0, 1)], False) for step in (10, 30)),
        # In the samples after it.
        *(([(10, asked) for asked in each], True) for each in ([0], [1], [2, 1, 0])),
    ],
    ids=str,
)
def test_a_run_that_signals_end_goes_on_as_one_left_alone(
    tmp_path: Path, whole: tuple[Path, Any, Silent], cuts: list[tuple[int, int]], is_evaluated: bool
) -> None:
    """The same state, rows, best checkpoint and samples, of a step all or none, however often."""
    samples = []
    evaluation = is_evaluated * len([*task(SAMPLING).system.heldout()])
    for step, asked in cuts:
        state, report = run(tmp_path, task(SAMPLING), stop_at=step, times=evaluation + asked)
        assert int(state.step) == max(map(number, RunFolder(tmp_path).checkpoints.iterdir()))
        assert step <= int(state.step) <= step + (step % 10 != 0)
        assert is_evaluated or not any(row["step"] == step for row in report.rows)
        samples += report.samples
    state, report = run(tmp_path, task(SAMPLING))
    assert unequal(state, whole[1]) == []
    assert rows_of(tmp_path) == rows_of(whole[0])
    assert samples + report.samples == whole[2].samples
    assert all(row["tokens_per_second"] > 0 for row in report.rows)
    assert CheckpointStore(RunFolder(tmp_path).checkpoints, read_only=True).best_step() == 30


def test_a_step_waits_for_the_save_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a kill takes one interval of steps at most; nor does the rate pay for the wait."""
    now, begun, saved, save = 0.0, list[int](), [0], CheckpointStore.save
    monkeypatch.setattr(log, "time", SimpleNamespace(perf_counter=lambda: now))

    def slow_save(store: CheckpointStore, *arguments: Any, **options: Any) -> None:
        nonlocal now
        now += 1000
        save(store, *arguments, **options)
        saved.append(store.steps()[-1])

    def noted_step(program: Any, state: Any, *given: Any) -> Any:
        nonlocal now
        now += 1
        begun.append(int(state.step))
        assert saved[-1] == begun[-1] // 6 * 6
        return train_step(program, state, *given)

    monkeypatch.setattr(CheckpointStore, "save", slow_save)
    monkeypatch.setattr(loop, "train_step", noted_step)
    _, report = run(tmp_path, task(config(log_every=30, evaluate_every=0)))
    assert begun == list(range(30))
    tokens = 29 * 4 * 16  # the first step, which compiles, is not counted
    assert 20 < tokens / report.rows[-1]["tokens_per_second"] <= 30


@pytest.mark.slow
def test_a_corpus_may_be_fed_in_pieces(tmp_path: Path, whole: tuple[Path, Any, Silent]) -> None:
    run(tmp_path, task(config(corpus_on_device_mb=0)))
    found, expected = (
        [(row["step"], row["loss"]) for row in rows_of(path)] for path in (tmp_path, whole[0])
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4)  # another program, so it rounds


def test_rows_hold_what_they_promise(whole: tuple[Path, Any, Silent]) -> None:
    rows = read_rows(RunFolder(whole[0]).metrics)
    assert [row["step"] for row in rows] == [4, 8, 10, 12, 16, 20, 24, 28, 30]
    batches = task(config()).program.batches
    for row in rows:
        assert row["epoch"] == pytest.approx(row["step"] / batches, abs=1e-4)
        assert row["perplexity"] == pytest.approx(math.exp(row["loss"]))
        assert ("heldout_loss" in row) == (row["step"] in (10, 20, 30))
        assert 0 < row["accuracy"] < 1
        assert min(row["grad_norm"], row["tokens_per_second"], row["seconds"]) > 0
        assert row["skipped_steps"] == 0
    assert rows[0]["learning_rate"] == pytest.approx(0.02)  # warmed up after three updates
    assert rows[-1]["learning_rate"] < 1e-3
    assert rows[-1]["heldout_loss"] < rows[2]["heldout_loss"] < math.log(40)
    assert [row["seconds"] for row in rows] == sorted(row["seconds"] for row in rows)


@pytest.mark.slow
def test_intervals_may_count_epochs(tmp_path: Path) -> None:
    settings = config(
        intervals="epochs", steps=None, epochs=4, log_every=1, evaluate_every=2, checkpoint_every=3
    )
    state, report = run(tmp_path, task(settings))
    batches = task(settings).program.batches
    assert [row["epoch"] for row in report.rows] == [1, 2, 3, 4]
    assert [row["epoch"] for row in report.rows if "heldout_loss" in row] == [2, 4]
    assert int(state.step) == 4 * batches
    saved = {*map(number, RunFolder(tmp_path).checkpoints.iterdir())}
    assert saved == {3 * batches, 4 * batches}


def test_training_ends_when_patience_does_and_stays_ended(tmp_path: Path) -> None:
    """And counts an evaluation that was done on resuming."""
    state, report = run(tmp_path / "whole", task(HASTY))
    losses = [row["heldout_loss"] for row in report.rows if "heldout_loss" in row]
    last = int(state.step)
    assert last == 2 * (losses.index(min(losses)) + 1 + 3) < 30
    (told,) = report.notes
    assert "3 evaluations without a better held-out loss; done (a larger --patience" in told
    again, report = run(tmp_path / "whole", task(HASTY))
    assert (int(again.step), report.rows, report.notes) == (last, [], [told])
    for stop_at, times in ((last - 3, 0), (last, 1)):
        path = tmp_path / str(stop_at)
        run(path, task(HASTY), stop_at=stop_at, times=times)
        state, report = run(path, task(HASTY))
        assert int(state.step) == report.rows[-1]["step"] == last
        assert report.notes == [told]


@pytest.fixture(scope="module")
def averaging(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Silent]:
    path = tmp_path_factory.mktemp("averaging") / "run"
    return path, *run(path, task(AVERAGING))


def test_averaging_begins_as_the_paper_has_it(averaging: tuple[Path, Any, Silent]) -> None:
    """Merity et al. (2018), algorithm 1: v is above the lowest of all but the last n losses."""
    _, state, report = averaging
    rows = [row for row in report.rows if "heldout_loss" in row]
    losses, window = [row["heldout_loss"] for row in rows], AVERAGING.optimizer.average_after
    begins = next(
        row["step"]
        for place, row in enumerate(rows)
        if place > window and losses[place] > min(losses[: place - window])
    )
    (note,) = (note for note in report.notes if "averaged" in note)
    assert note.startswith(f"step {begins}: ") and begins < rows[-1]["step"]
    assert int(state.opt_state[-1].steps) == 1 + int(state.step) - begins
    # What is judged is the average, and not the weights of the last step.
    average = replace(state, params=averaged(state.opt_state, state.params), opt_state=((),))
    assert heldout_metrics(task(AVERAGING), average)["heldout_loss"] == losses[-1]
    last = replace(state, opt_state=((),))
    assert heldout_metrics(task(AVERAGING), last)["heldout_loss"] != losses[-1]


@cases("cut, asked", [(0, 0), (-1, 0), (0, 2), (1, 0), (5, 0)], (0, 0))
def test_a_run_resumed_about_where_averaging_begins_is_the_run_left_alone(
    cut: int, asked: int, averaging: tuple[Path, Any, Silent], tmp_path: Path
) -> None:
    path, state, report = averaging
    (note,) = (note for note in report.notes if "averaged" in note)
    begins = int(note.split()[1].rstrip(":"))
    run(tmp_path, task(AVERAGING), stop_at=begins + cut, times=asked)
    found, _ = run(tmp_path, task(AVERAGING))
    assert unequal(found, state) == []
    assert rows_of(tmp_path) == rows_of(path)


def test_samples_go_on_from_each_prompt(whole: tuple[Path, Any, Silent]) -> None:
    samples = iter(whole[2].samples)
    for step in (10, 20, 30):
        for prompt in SAMPLING.sample_prompts:
            at, given, text = next(samples)
            assert (at, given, len(text)) == (step, prompt, len(prompt) + 20)
            assert text.startswith(prompt)


@pytest.mark.slow
def test_a_run_can_be_taken_further(tmp_path: Path) -> None:
    settings = config(steps=12, optimizer=replace(config().optimizer, schedule="constant"))
    run(tmp_path / "run", task(settings))
    state, _ = run(tmp_path / "run", task(replace(settings, steps=20)))
    straight, _ = run(tmp_path / "straight", task(replace(settings, steps=20)))
    assert unequal(state.params, straight.params) == []


@cases("most, limit", [(1, 2), (3, 3), (6, 6), (7, 7)], (1, 2), (6, 6))
def test_endless_skipping_ends_with_a_run_to_repeat(tmp_path: Path, most: int, limit: int) -> None:
    """Whether or not the last step is one at which there is a checkpoint, as at 6.

    A step's numbers are read while the next one runs, so two are needed to see the first.
    """
    the_task, folder = task(config(skipped_at_most=most)), RunFolder(tmp_path)
    params = first_state(the_task).params
    output = params.output._replace(b=params.output.b.at[0].set(np.nan))
    begun = replace(first_state(the_task), params=params._replace(output=output))
    report = Silent()
    with pytest.raises(loop.NotFiniteError, match=f"at step {limit},") as raised:
        run(tmp_path, the_task, begun=begun, report=report)
    assert str(folder.nonfinite.path) in str(raised.value)
    assert report.steps == list(range(1, limit + 1))
    assert len(report.notes) == limit
    rows = [(row["step"], row["loss"], row["skipped_steps"]) for row in read_rows(folder.metrics)]
    assert rows == [(4, None, 4)] * (limit >= 4)
    saved, dumped = (saved_state(path, the_task) for path in (tmp_path, folder.nonfinite.path))
    assert (int(saved.step), int(saved.skipped)) == (limit, limit)
    assert (int(dumped.step), int(dumped.batch), int(dumped.skipped)) == (limit - 1,) * 3


def test_a_finite_step_between_begins_the_count_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(program: Any, state: Any, *given: Any) -> Any:
        is_odd = state.step % 2 == 1
        state, metrics = train_step(program, state, *given)
        return state, metrics._replace(loss=jnp.where(is_odd, jnp.nan, metrics.loss))

    monkeypatch.setattr(loop, "train_step", step)
    _, report = run(tmp_path, task(config(skipped_at_most=2, log_every=1)))
    assert len(report.notes) == 15


def test_held_out_loss_of_a_run_that_holds_nothing_out_is_refused() -> None:
    the_task = task(config(heldout_share=0.0))
    with pytest.raises(ValueError, match=r"nothing is held out.*--heldout-share"):
        heldout_metrics(the_task, first_state(the_task))
