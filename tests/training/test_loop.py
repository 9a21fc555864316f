"""The loop: a run cut short and resumed is the run left alone, bit for bit."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tasks import Silent, assert_same_bits, config, run, task, without_timings

from lstm_jax.systems.base import OptimizerConfig, SampleConfig
from lstm_jax.training import log, loop
from lstm_jax.training.checkpoint import CheckpointStore
from lstm_jax.training.log import read_rows
from lstm_jax.training.run import RunFolder
from lstm_jax.training.state import train_step
from lstm_jax.training.task import Task, first_state, heldout_metrics, restored_state

SAMPLING = config(
    sample_every=10, sample_prompts=("7 times", "and"), sample=SampleConfig(length=20, top_n=5)
)


def rows_of(path: Path) -> list[dict[str, Any]]:
    return without_timings(read_rows(RunFolder(path).metrics))


def drop_checkpoints_after(path: Path, step: int) -> None:
    """As a kill before them would."""
    for each in RunFolder(path).checkpoints.iterdir():
        if int(each.name) > step:
            shutil.rmtree(each)


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, object, Silent]:
    path = tmp_path_factory.mktemp("sampled") / "run"
    return path, *run(path, task(SAMPLING))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, object]:
    path = tmp_path_factory.mktemp("whole") / "run"
    state, _ = run(path, task(config()))
    return path, state


@pytest.mark.parametrize("stop_at", [1, 6, 11, 17])
def test_stopped_and_resumed_equals_uninterrupted(
    tmp_path: Path, uninterrupted: tuple[Path, object], stop_at: int
) -> None:
    whole, final = uninterrupted
    path = tmp_path / "run"
    state, _ = run(path, task(config()), stop_at=stop_at)
    assert int(state.step) < 30
    state, _ = run(path, task(config()), resume=True)
    assert_same_bits(state, final)
    assert rows_of(path) == rows_of(whole)


class StopsAfter:
    """A signal that comes once a step was taken in and training has asked so many times more."""

    def __init__(self, report: Silent, step: int, times: int) -> None:
        self._report, self._step, self._times = report, step, times

    def __call__(self) -> bool:
        if self._report.steps[-1:] >= [self._step]:
            self._times -= 1
        return self._times < 0


def cut_short(path: Path, the_task: Task, step: int, times: int) -> Silent:
    """A run, gone on with where there is one, that a signal ends in what is due at a step."""
    folder, report = RunFolder(path), Silent()
    stops = StopsAfter(report, step, times)
    with CheckpointStore(folder.checkpoints, keep_latest=50) as store:
        state, progress = first_state(the_task), {}
        if store.latest_step():
            state, progress = restored_state(the_task, store)
            report.steps.append(int(state.step))
        state = loop.train(
            the_task, state, folder, store, report, progress=progress, should_stop=stops
        )
        assert stops()
        assert int(state.step) == store.latest_step() == step
    return report


@pytest.mark.parametrize("step", [10, 30])  # without and with a checkpoint due besides
@pytest.mark.parametrize("times", [[0], [3], [2, 0, 1]], ids=str)
def test_an_evaluation_that_a_signal_ends_is_done_on_resuming(
    tmp_path: Path, uninterrupted: tuple[Path, object], step: int, times: list[int]
) -> None:
    """However often: the same rows, the same state, the same best checkpoint."""
    whole, final = uninterrupted
    path, the_task = tmp_path / "run", task(config())
    for each in times:
        assert not any(row["step"] == step for row in cut_short(path, the_task, step, each).rows)
    state, report = run(path, the_task, resume=True)
    assert_same_bits(state, final)
    assert report.rows[0]["step"] == step
    assert report.rows[0]["tokens_per_second"] > 0
    assert rows_of(path) == rows_of(whole)
    with CheckpointStore(RunFolder(path).checkpoints, read_only=True) as store:
        assert store.best_step() == 30


def test_a_row_that_its_checkpoint_was_saved_without_is_written_once(
    tmp_path: Path, uninterrupted: tuple[Path, object]
) -> None:
    """A signal ends the evaluation of step 10; then a kill takes what came after its checkpoint."""
    path, the_task = tmp_path / "run", task(config())
    cut_short(path, the_task, 10, 0)
    for _ in range(2):
        run(path, the_task, resume=True)
        assert rows_of(path) == rows_of(uninterrupted[0])
        drop_checkpoints_after(path, 10)


def test_patience_counts_an_evaluation_that_was_done_on_resuming(tmp_path: Path) -> None:
    hasty = OptimizerConfig(learning_rate=3.0, clip_norm=None)
    the_task = task(config(evaluate_every=2, checkpoint_every=0, patience=3, optimizer=hasty))
    last = int(run(tmp_path / "whole", the_task)[0].step)
    cut_short(tmp_path / "cut", the_task, last, 1)
    state, report = run(tmp_path / "cut", the_task, resume=True)
    assert int(state.step) == last
    assert [row["step"] for row in report.rows] == [last]
    assert report.notes[-1].endswith("done")


@pytest.mark.parametrize("times", [[0], [1], [2, 1, 0]], ids=str)
def test_samples_that_a_signal_ends_are_made_on_resuming(
    tmp_path: Path, sampled: tuple[Path, object, Silent], times: list[int]
) -> None:
    """All samples of a step or none: in pieces, a run shows what it shows when left alone."""
    path, final, whole = sampled
    the_task = task(SAMPLING)
    heldout = len([*the_task.system.heldout()])
    for each in times:  # the evaluation is over, and is done again each time
        assert cut_short(tmp_path, the_task, 10, heldout + each).samples == []
    state, rest = run(tmp_path, the_task, resume=True)
    assert rest.samples == whole.samples
    assert_same_bits(state, final)
    assert rows_of(tmp_path) == rows_of(path)


def test_a_signal_before_the_first_step_is_heard_before_it(
    tmp_path: Path, uninterrupted: tuple[Path, object]
) -> None:
    """So no compilation is waited for; what is saved is the beginning."""
    folder, the_task, report = RunFolder(tmp_path), task(config()), Silent()
    for _ in range(2):
        with CheckpointStore(folder.checkpoints) as store:
            state = loop.train(
                the_task, first_state(the_task), folder, store, report, should_stop=lambda: True
            )
            assert int(state.step) == 0
        with CheckpointStore(folder.checkpoints) as store:
            assert store.steps() == [0]
    assert report.steps == []
    state, _ = run(tmp_path, the_task, resume=True)
    assert_same_bits(state, uninterrupted[1])


def test_work_since_the_last_checkpoint_is_done_again_the_same(
    tmp_path: Path, uninterrupted: tuple[Path, object]
) -> None:
    """As after SIGKILL: later checkpoints are gone, rows of metrics beyond them are not."""
    whole, final = uninterrupted
    path = tmp_path / "run"
    run(path, task(config()), stop_at=20)
    drop_checkpoints_after(path, 12)
    with RunFolder(path).metrics.open("a") as log:
        log.write('{"step": 24, "loss": 1.')
    state, _ = run(path, task(config()), resume=True)
    assert_same_bits(state, final)
    assert rows_of(path) == rows_of(whole)


def test_a_step_begins_only_once_the_save_before_it_is_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a kill takes one interval of steps at most; nor does the rate pay for the wait."""
    the_task = task(config(log_every=30, evaluate_every=0))
    folder, report, now = RunFolder(tmp_path), Silent(), 0.0
    monkeypatch.setattr(log, "time", SimpleNamespace(perf_counter=lambda: now))

    class SlowStore(CheckpointStore):
        def save(self, *arguments: Any, **options: Any) -> None:
            nonlocal now
            now += 1000
            super().save(*arguments, **options)

    begun: list[int] = []
    with SlowStore(folder.checkpoints, keep_latest=50) as store:

        def noted_step(program: Any, state: Any, *given: Any) -> Any:
            nonlocal now
            now += 1
            begun.append(int(state.step))
            assert (store.latest_step() or 0) == begun[-1] // 6 * 6
            return train_step(program, state, *given)

        monkeypatch.setattr(loop, "train_step", noted_step)
        loop.train(the_task, first_state(the_task), folder, store, report)
    assert begun == list(range(30))
    tokens = 29 * 4 * 16  # the first step, which compiles, is not counted
    assert 20 < tokens / report.rows[-1]["tokens_per_second"] <= 30


@pytest.mark.slow
def test_a_corpus_fed_piece_by_piece_gives_the_same_run(
    tmp_path: Path, uninterrupted: tuple[Path, object]
) -> None:
    _, report = run(tmp_path / "run", task(config(corpus_on_device_mb=0)))
    # Another program, so equal but for rounding.
    for row, expected in zip(
        report.rows, read_rows(RunFolder(uninterrupted[0]).metrics), strict=True
    ):
        assert row["step"] == expected["step"]
        assert row["loss"] == pytest.approx(expected["loss"], rel=1e-4)


def test_rows_hold_what_they_promise(uninterrupted: tuple[Path, object]) -> None:
    rows = read_rows(RunFolder(uninterrupted[0]).metrics)
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
    saved = {int(p.name) for p in RunFolder(tmp_path).checkpoints.iterdir()}
    assert saved == {3 * batches, 4 * batches}


def test_training_ends_when_patience_does_and_stays_ended(tmp_path: Path) -> None:
    """A learning rate that ruins the model: the held-out loss is best at first."""
    hasty = OptimizerConfig(learning_rate=3.0, clip_norm=None)
    settings = config(evaluate_every=2, checkpoint_every=0, patience=3, optimizer=hasty)
    state, report = run(tmp_path / "run", task(settings))
    losses = [row["heldout_loss"] for row in report.rows if "heldout_loss" in row]
    best = losses.index(min(losses))
    assert int(state.step) == 2 * (best + 1 + 3) < 30
    assert report.notes[-1].endswith("3 evaluations without a better held-out loss; done")
    again, report = run(tmp_path / "run", task(settings), resume=True)
    assert int(again.step) == int(state.step)
    assert report.rows == []
    run(tmp_path / "cut", task(settings), stop_at=int(state.step) - 3)
    resumed, _ = run(tmp_path / "cut", task(settings), resume=True)
    assert int(resumed.step) == int(state.step)


def test_samples_go_on_from_each_prompt(
    tmp_path: Path, sampled: tuple[Path, object, Silent]
) -> None:
    _, _, whole = sampled
    assert [(step, prompt) for step, prompt, _ in whole.samples] == [
        (step, prompt) for step in (10, 20, 30) for prompt in SAMPLING.sample_prompts
    ]
    for _, prompt, text in whole.samples:
        assert text.startswith(prompt) and len(text) == len(prompt) + 20
    run(tmp_path, task(SAMPLING), stop_at=12)
    _, rest = run(tmp_path, task(SAMPLING), resume=True)
    assert rest.samples == whole.samples[-4:]


@pytest.mark.slow
def test_a_run_can_be_taken_further(tmp_path: Path) -> None:
    settings = config(steps=12, optimizer=replace(config().optimizer, schedule="constant"))
    run(tmp_path / "run", task(settings))
    state, _ = run(tmp_path / "run", task(replace(settings, steps=20)), resume=True)
    straight, _ = run(tmp_path / "straight", task(replace(settings, steps=20)))
    assert_same_bits(state.params, straight.params)


def with_nan(state: Any) -> Any:
    nan = state.params.output.b.at[0].set(np.nan)
    output = state.params.output._replace(b=nan)
    return replace(state, params=state.params._replace(output=output))


def test_skipped_steps_are_counted_and_told(tmp_path: Path) -> None:
    the_task = task(config(steps=8))
    report = Silent()
    with CheckpointStore(tmp_path / "checkpoints") as store:
        state = loop.train(
            the_task, with_nan(first_state(the_task)), RunFolder(tmp_path), store, report
        )
    assert int(state.skipped) == 8
    assert report.rows[-1]["skipped_steps"] == 8
    assert report.steps == [1, 2, 3, 4, 5, 6, 7, 8]
    assert len(report.notes) == 8
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])["loss"] is None


@pytest.mark.parametrize(
    ("most", "limit"),
    [
        (1, 2),
        pytest.param(3, 3, marks=pytest.mark.slow),
        (6, 6),
        pytest.param(7, 7, marks=pytest.mark.slow),
    ],
)
def test_endless_skipping_ends_with_a_run_that_repeats_it(
    tmp_path: Path, most: int, limit: int
) -> None:
    """Whether or not the last step is one at which there is a checkpoint, as at 6.

    A step's numbers are read while the next one runs, so two are needed to see the first.
    """
    the_task = task(config(steps=30, skipped_at_most=most))
    folder, report = RunFolder(tmp_path), Silent()
    begun = with_nan(first_state(the_task))
    before = jax.tree.map(jnp.copy, begun)
    with (
        CheckpointStore(folder.checkpoints) as store,
        pytest.raises(loop.NotFiniteError, match=f"at step {limit},") as raised,
    ):
        loop.train(the_task, begun, folder, store, report)
    assert str(folder.nonfinite.path) in str(raised.value)
    assert report.steps == list(range(1, limit + 1))
    assert [row["step"] for row in read_rows(folder.metrics)] == [4] * (limit >= 4)
    with CheckpointStore(folder.checkpoints, read_only=True) as store:
        saved, _ = restored_state(the_task, store)
    assert (int(saved.step), int(saved.skipped)) == (limit, limit)
    with CheckpointStore(folder.nonfinite.checkpoints, read_only=True) as store:
        dumped, _ = restored_state(the_task, store)
    assert (int(dumped.step), int(dumped.batch), int(dumped.skipped)) == (limit - 1,) * 3
    for kept in (saved, dumped):
        assert_same_bits(kept.params, before.params)
        assert_same_bits(kept.opt_state, before.opt_state)
    after, metrics = train_step(the_task.program, dumped, the_task.system.feed()(limit - 1))
    assert int(after.skipped) == limit
    assert not np.isfinite(float(metrics.loss))


def test_a_finite_step_between_begins_the_count_anew(tmp_path: Path) -> None:
    """Only the second batch of each epoch holds what no logit can be finite for."""
    the_task = task(config(steps=30, skipped_at_most=2, log_every=1))
    program = the_task.program._replace(objective=_NotFiniteAtOdd(the_task.program.objective))
    report = Silent()
    with CheckpointStore(tmp_path / "checkpoints") as store:
        loop.train(
            the_task._replace(program=program),
            first_state(the_task),
            RunFolder(tmp_path),
            store,
            report,
        )
    odd = sum(step % program.batches % 2 for step in range(30))
    assert len(report.notes) == odd > 10


@dataclass(frozen=True)
class _NotFiniteAtOdd:
    """An objective whose loss is NaN at every other batch."""

    objective: Any

    def init(self, key: Any) -> Any:
        return self.objective.init(key)

    def zero_carry(self, params: Any, batch_size: int) -> Any:
        return self.objective.zero_carry(params, batch_size)

    def sums(self, params: Any, carry: Any, data: Any, index: Any, key: Any) -> Any:
        sums, carry = self.objective.sums(params, carry, data, index, key)
        if key is None:
            return sums, carry
        bad = jnp.where(index % 2 == 1, jnp.nan, 0.0)
        parts = {name: part._replace(loss=part.loss + bad) for name, part in sums.parts.items()}
        return sums._replace(parts=parts), carry


def test_held_out_loss_of_a_run_that_holds_nothing_out_is_refused() -> None:
    the_task = task(config(heldout_share=0.0))
    with pytest.raises(ValueError, match=r"nothing is held out.*--heldout-share"):
        heldout_metrics(the_task, first_state(the_task))
