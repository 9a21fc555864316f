"""What `train.py` does once its arguments are read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lstm_jax.cli.display import Display
from lstm_jax.presets import preset_named
from lstm_jax.training import loop, plots
from lstm_jax.training.checkpoint import CheckpointStore
from lstm_jax.training.config import TrainConfig
from lstm_jax.training.corpus import make_corpus, read_corpus_text
from lstm_jax.training.metrics import perplexity
from lstm_jax.training.run import (
    RunFolder,
    create_run,
    refuse_changes,
    refuse_existing,
    refuse_other_data,
    write_config,
)
from lstm_jax.training.tensorboard import TensorBoardReport, require_tensorboard


def train_run(
    path: Path,
    config: TrainConfig,
    *,
    resume: bool,
    profile_dir: str | None,
    tensorboard: bool,
    should_stop: Callable[[], bool],
) -> None:
    """Starts or resumes a run, and draws its curves.

    Raises:
        ValueError: for whatever the user can mend, before anything is written.
    """
    folder = RunFolder(path)
    if tensorboard:
        require_tensorboard()
    task = _resumed_task(folder, config) if resume else _new_task(folder, config)
    config = task.config
    progress: dict[str, Any] = {}
    if resume:
        with CheckpointStore(folder.checkpoints, read_only=True) as store:
            state, progress = loop.restored_state(task, store)
        write_config(folder, config, task.corpus)
    else:
        state = loop.first_state(task)
        create_run(folder, config, task.corpus)
    step = int(state.step)
    with ExitStack() as stack:
        store = stack.enter_context(
            CheckpointStore(folder.checkpoints, keep_latest=config.keep_checkpoints)
        )
        display = stack.enter_context(Display(step, task.total_steps))
        report: loop.Report = display
        if tensorboard:
            report = stack.enter_context(TensorBoardReport(display, folder.tensorboard, step))
        display.note(_summary(task, path, step))
        state = loop.train(
            task,
            state,
            folder,
            store,
            report,
            progress=progress,
            should_stop=should_stop,
            profile_dir=profile_dir,
        )
        display.note(f"saved step {int(state.step)} in {path}")
        if plots.have_matplotlib() and folder.metrics.stat().st_size:
            plots.draw_curves([path], folder.plot)


def evaluate_run(path: Path, config: TrainConfig) -> dict[str, Any]:
    """The held-out loss of a run's newest checkpoint, and its perplexity."""
    folder = RunFolder(path)
    task = _resumed_task(folder, config)
    with CheckpointStore(folder.checkpoints, read_only=True) as store:
        state, _ = loop.restored_state(task, store)
    loss = loop.heldout_loss(task, state)
    return {
        "step": int(state.step),
        "heldout_loss": loss,
        "heldout_perplexity": perplexity(loss),
    }


def _new_task(folder: RunFolder, config: TrainConfig) -> loop.Task:
    refuse_existing(folder)
    text = read_corpus_text(config)
    preset = preset_named(config.preset)
    if config.data != preset.data and config.sample_prompts == preset.sample_prompts:
        # The preset's prompts are for the preset's text; another one's own beginning serves it.
        config = dataclasses.replace(config, sample_prompts=(text.split()[0][:20],))
    return _task(config, text)


def _resumed_task(folder: RunFolder, config: TrainConfig) -> loop.Task:
    refuse_changes(folder, config)
    task = _task(config, read_corpus_text(config, folder.corpus))
    refuse_other_data(folder, task.corpus)
    return task


def _task(config: TrainConfig, text: str) -> loop.Task:
    task = loop.make_task(config, make_corpus(config, text))
    if config.sample_every:
        for prompt in config.sample_prompts:  # one that can't be used is said now
            task.corpus.vocabulary.encode_prompt(prompt)
    return task


def _summary(task: loop.Task, path: Path, step: int) -> str:
    import jax

    parameters = sum(
        leaf.size for leaf in jax.tree.leaves(jax.eval_shape(task.model.init, jax.random.key(0)))
    )
    device = jax.local_devices()[0]
    begun = f"resumed at step {step}" if step else "new run"
    return (
        f"{task.config.preset}: {begun} in {path}; {len(task.corpus.text):,} characters, "
        f"{len(task.corpus.vocabulary)} tokens in the vocabulary, {parameters:,} parameters, "
        f"{task.program.batches} batches an epoch, {task.total_steps} steps, "
        f"{task.config.devices} x {device.device_kind}"
    )
