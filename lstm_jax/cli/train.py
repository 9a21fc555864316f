"""The `train` command: train a system in a run folder, resume it, or evaluate it."""

import dataclasses
import math
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import jax

from lstm_jax.cli.console import json_line, leave, put, tell
from lstm_jax.cli.devices import chosen_devices
from lstm_jax.cli.display import Display
from lstm_jax.cli.processes import joined, watched
from lstm_jax.cli.train_options import TrainCommand
from lstm_jax.files import one_line
from lstm_jax.systems import read_system, to_dict
from lstm_jax.systems.base import System, TrainConfig
from lstm_jax.systems.corpus import BUILT_IN
from lstm_jax.systems.downloads import SOURCES
from lstm_jax.training import loop, plots, task
from lstm_jax.training import run as runs
from lstm_jax.training.checkpoint import CheckpointStore
from lstm_jax.training.optimizer import learning_rate_schedule
from lstm_jax.training.processes import gathered, is_first, require_same, together
from lstm_jax.training.recorders import Recorded, Recorder, TensorBoardRecorder, WandbRecorder
from lstm_jax.training.run import RunFolder, read_description
from lstm_jax.training.state import TrainState


def run(command: TrainCommand[Any]) -> int:
    """Train or evaluate; raises ValueError for user errors.

    Returns the exit code: 0, or 128 + the number of the signal that stopped the run.
    """
    folder = RunFolder(command.run_dir)
    with joined(command.launch) as processes:
        devices = chosen_devices(command.config, processes, is_asked=command.own_devices)
        config = dataclasses.replace(command.config, devices=devices)
        if command.eval_only:
            found = evaluate_run(folder, config)
            if is_first():
                put(json_line(found) + "\n")
            return 0
        limit = 0 if processes == 1 else command.launch.stuck_timeout
        with signals() as caught, watched(lambda: bool(caught), limit) as should_stop:
            train_run(folder, dataclasses.replace(command, config=config), should_stop)
        number = max(map(int, gathered(str(caught[0] if caught else 0))))
    return 128 + number if number else 0


def train_run(
    folder: RunFolder, command: TrainCommand[Any], should_stop: Callable[[], bool]
) -> None:
    """Start or resume a run, and draw its curves; refuses before anything is written."""
    wanted: dict[type[Recorder], bool]
    wanted = {TensorBoardRecorder: command.tensorboard, WandbRecorder: command.wandb}
    kinds = [kind for kind, is_wanted in wanted.items() if is_wanted and is_first()]
    for kind in kinds:
        kind.require()
    config, resume = command.config, command.resume
    before = read_description(folder).config if resume else None
    system = _system_of_run(folder, config) if resume else _new_system(folder, config)
    system = system.with_samples(replace=not command.own_samples)
    the_task = task.make_task(system)
    # Paths may differ between hosts.
    shared = {k: each for k, each in to_dict(system.config).items() if k not in ("data", "vectors")}
    require_same({"the data": system.sha256, "the settings": json_line(shared)})
    # Compute the initial state before creating the folder: invalid settings leave nothing behind.
    first = None if resume and not _has_no_checkpoint(folder) else task.first_state(the_task)
    with ExitStack() as stack:
        hold = partial(stack.enter_context, runs.held(folder, new=not resume))
        together(hold, first_only=True)
        state, progress = _starting_state(folder, the_task, first, resume)
        require_same({"the files of the run folder": folder.config.read_bytes()})
        step = int(state.step)
        store = CheckpointStore(folder.checkpoints, keep_latest=config.keep_checkpoints)
        display = stack.enter_context(Display(step, the_task.total_steps, quiet=not is_first()))
        settings = to_dict(system.config)
        recorders = [kind(folder, settings, step) for kind in kinds]
        for each in recorders:
            stack.enter_context(each)
        # From here on, draw with the key implementation that the run started with.
        stack.enter_context(jax.default_prng_impl(str(jax.random.key_impl(state.key))))
        # Optax adds integers to floats, which "strict" forbids.
        stack.enter_context(jax.numpy_dtype_promotion("standard"))
        display.note(_summary(the_task, folder.path, step))
        if before is not None and (note := _rate_change_note(the_task, before, state)):
            display.note(note)
        report, profile = Recorded(display, recorders), command.profile
        state = loop.train(
            the_task, state, folder, store, report, progress=progress, should_stop=should_stop,
            profile_dir=None if profile is None else str(profile),
        )  # fmt: skip
        display.note(f"saved step {int(state.step)} in {folder.path}")
        if is_first() and plots.have_matplotlib() and folder.metrics.stat().st_size:
            _draw_curves(folder, display)


def _draw_curves(folder: RunFolder, display: Display) -> None:
    try:
        plots.draw_curves([folder.path], folder.plot)
    except Exception as error:  # matplotlib and its settings may raise anything
        display.note(f"no curves were drawn ({one_line(error, 1_000)}); everything else is saved")


def evaluate_run(folder: RunFolder, config: TrainConfig) -> dict[str, Any]:
    """Held-out metrics of a run's newest checkpoint.

    For reviews, those of the best checkpoint, and its metrics on the data's own test set.
    """
    system = _system_of_run(folder, config)
    the_task = task.make_task(system)
    store = CheckpointStore(folder.checkpoints, read_only=True)
    best = store.best_step() if system.used_step == "best" else None
    state, _ = task.restored_state(the_task, store, step=best)
    tests = task.judged(the_task, state, "test_", system.test_batches(), config.batch_size)
    return {"step": int(state.step), **task.heldout_metrics(the_task, state), **tests}


def _starting_state(
    folder: RunFolder, the_task: task.Task, first: TrainState | None, resume: bool
) -> tuple[TrainState, dict[str, Any]]:
    """The state to train from, and its progress; creates a new run's folder."""
    if first is not None and not resume:
        together(lambda: runs.create_run(folder, the_task.system), first_only=True)
        return first, {}
    store = CheckpointStore(folder.checkpoints)  # a damaged checkpoint is set aside
    state, progress = first, dict[str, Any]()
    if state is None or not store.is_empty:
        state, progress = task.restored_state(the_task, store)
    if (step := int(state.step)) > the_task.total_steps:
        raise ValueError(
            f"{folder.path} is at step {step}, past step {the_task.total_steps}, where "
            "it is to end: there is nothing to do; give more --steps or --epochs"
        )
    files = read_description(folder).files
    together(lambda: runs.write_config(folder, the_task.system, files), first_only=True)
    return state, progress


def _has_no_checkpoint(folder: RunFolder) -> bool:
    """Whether the run was killed before its first checkpoint, so that it starts afresh."""
    return CheckpointStore(folder.checkpoints, read_only=True).is_empty


def _new_system(folder: RunFolder, config: TrainConfig) -> System:
    runs.refuse_existing(folder)
    if config.init_from is not None:
        runs.refuse_other_model(RunFolder(Path(config.init_from)), config)
    return read_system(_located(config))


def _system_of_run(folder: RunFolder, config: TrainConfig) -> System:
    runs.refuse_changes(folder, config)
    runs.refuse_damaged_files(folder)
    config = _located(config, moved=True)
    # Vectors that a run fine-tunes are among its parameters, once it has a checkpoint.
    system = read_system(config, None if _has_no_checkpoint(folder) else folder.path)
    runs.refuse_other_data(folder, system)
    return system


def _located(config: TrainConfig, *, moved: bool = False) -> TrainConfig:
    """The settings with absolute paths, so that the run finds its files from any folder.

    With `moved`, a missing file is searched for under the ends of its old path, in the current
    folder; `refuse_other_data` checks that it is the same.
    """
    found: dict[str, Any] = {}
    for name in ("data", "vectors"):
        given = getattr(config, name, None)
        if not given or given in SOURCES or given in BUILT_IN:
            continue
        parts = Path(given).parts if moved else ()
        places = [given, *(os.path.join(*parts[first:]) for first in range(1, len(parts)))]
        found[name] = os.path.abspath(next(filter(os.path.exists, places), given))
    return dataclasses.replace(config, **found)


def _rate_change_note(the_task: task.Task, before: TrainConfig, state: TrainState) -> str:
    """A note if the settings of a resumed run change its learning rate, else an empty string."""
    updates = int(state.step) - int(state.skipped)
    steps = task.total_steps(before, the_task.program.batches)
    old = learning_rate_schedule(before.optimizer, steps)
    was, becomes = (float(rate(updates)) for rate in (old, the_task.learning_rate))
    if not updates or math.isclose(was, becomes, rel_tol=1e-6):
        return ""
    totals = ((before, steps), (the_task.config, the_task.total_steps))
    kept, new = ({**dataclasses.asdict(each.optimizer), "steps": end} for each, end in totals)
    changes = "; ".join(f"{k} is {new[k]}, was {kept[k]}" for k in new if new[k] != kept[k])
    rates = f"from {float(old(updates - 1)):.3g} to {becomes:.3g}"
    return f"the learning rate goes {rates} here: {changes}"


def _summary(the_task: task.Task, path: Path, step: int) -> str:
    device = jax.local_devices()[0]
    begun = f"resumed at step {step}" if step else "begins at step 0"
    if the_task.config.init_from is not None and not step:
        begun += f" with the weights of {the_task.config.init_from}"
    return (
        f"{the_task.config.preset}: {begun} in {path}; {the_task.system.summary()}; "
        f"{the_task.parameters:,} parameters, {the_task.program.batches} batches an epoch, "
        f"{the_task.total_steps} steps, {the_task.config.device_count} x {device.device_kind}"
        + (f" in {jax.process_count()} processes" if jax.process_count() > 1 else "")
    )


@contextmanager
def signals() -> Iterator[list[int]]:
    """Collects SIGINT, SIGTERM or SIGHUP, so that training ends after a step.

    A second SIGINT or SIGTERM ends it at once. SIGHUP may come twice when a terminal is closed,
    from the terminal and its shell; under nohup it is ignored.
    """
    found: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        found.append(number)
        if len(found) == 1:
            tell("stopping: the state is being saved")
        elif number in (signal.SIGINT, signal.SIGTERM):
            tell("interrupted: what was not saved yet is lost")
            leave(128 + number)  # at once: Python's own end would disturb threads that save

    numbers = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    previous = {number: signal.signal(number, note) for number in numbers}
    try:
        yield found
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
