"""Each file of a run, damaged in each way: noticed, named, and never loaded as if it were good."""

from __future__ import annotations

import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bench.faults.lines import Line
from bench.faults.tiny import bytes_of, leaf_bytes, rows_of
from lstm_jax.training.checkpoint import CheckpointStore
from lstm_jax.training.log import MetricsLog
from lstm_jax.training.run import (
    RunFolder,
    read_description,
    refuse_damaged_files,
    refuse_other_data,
)
from lstm_jax.training.systems import read_system
from lstm_jax.training.task import Task, restored_state

DESCRIPTIONS = ("config.json", "vocab.json", "corpus.txt", "vectors.npy")
_REFUSED, _OLDER, _ROWS, _NONE, _WRONG = "refused", "older step", "rows told", "no effect", "wrong"


class Opened(NamedTuple):
    """A run as it is when training goes on.

    Attributes:
        step: of the checkpoint.
        state: each leaf's bytes.
        rows: of metrics.
        told: what was logged meanwhile.
    """

    step: int
    state: dict[str, bytes]
    rows: list[str]
    told: str


class Known(NamedTuple):
    """What is right: the bytes of each step's state, and the rows of metrics."""

    states: dict[int, dict[str, bytes]]
    rows: list[str]


def _flipped(bit: float) -> Callable[[Path], None]:
    def flip(path: Path) -> None:
        data = bytearray(path.read_bytes())
        place = int(bit * len(data) * 8)
        data[place // 8] ^= 1 << place % 8
        path.write_bytes(data)

    return flip


def damages(
    flips: int, random: np.random.Generator
) -> Iterator[tuple[str, Callable[[Path], None]]]:
    """Ways to damage a file that is not empty, by name."""
    for bit in random.uniform(0, 1, flips):
        yield f"a bit flipped at {bit:.4f}", _flipped(float(bit))
    yield "halved", lambda path: os.truncate(path, path.stat().st_size // 2)
    yield "without its last byte", lambda path: os.truncate(path, path.stat().st_size - 1)
    yield "emptied", lambda path: os.truncate(path, 0)
    yield "deleted", lambda path: path.unlink()


def corrupt(run: Path, task: Task, scratch: Path, *, flips: int, seed: int) -> list[Line]:
    """Damages a copy of each file in each way, and opens the run as `--resume` does.

    Args:
        run: with two checkpoints at least.
        task: what it trains.
        scratch: a folder for the copies.
        flips: how many bits of each file are flipped, one at a time.
        seed: of which.
    """
    with CheckpointStore(RunFolder(run).checkpoints, read_only=True) as store:
        steps = store.steps()
    known = Known({step: bytes_of(run, task, step) for step in steps}, rows_of(run))
    newest = RunFolder(run).checkpoints / str(steps[-1])
    kinds = {
        "a file of the newest checkpoint": [each for each in newest.rglob("*") if each.is_file()],
        "config.json, or a file it knows": [run / n for n in DESCRIPTIONS if (run / n).exists()],
    }
    random = np.random.default_rng(seed)
    lines = []
    for kind, files in kinds.items():
        outcomes: Counter[str] = Counter()
        failures = []
        for file in sorted(files):
            if not file.stat().st_size:
                continue
            for how, damage in damages(flips, random):
                shutil.rmtree(scratch, ignore_errors=True)
                shutil.copytree(run, scratch)
                damage(scratch / file.relative_to(run))
                outcome, why = judged(scratch, task, known, file)
                outcomes[outcome] += 1
                if outcome == _WRONG:
                    failures.append(f"{file.relative_to(run)} {how}: {why}")
        lines.append(_line(kind, len(files), outcomes, failures))
    shutil.rmtree(scratch, ignore_errors=True)
    return lines


def judged(run: Path, task: Task, known: Known, file: Path) -> tuple[str, str]:
    """What became of a run one of whose files is damaged, and why that is wrong if it is."""
    newest = max(known.states)
    try:
        opened = open_run(run, task)
    except ValueError as refusal:
        message = str(refusal)
        named = file.name in message and "\n" not in message
        return (_REFUSED, "") if named else (_WRONG, f"not named: {message}")
    if opened.state != known.states.get(opened.step):
        return _WRONG, f"other values of step {opened.step}"
    if opened.step < newest:
        aside = RunFolder(run).checkpoints / f"{newest}.damaged"
        named = str(aside) in opened.told and aside.is_dir()
        return (_OLDER, "") if named else (_WRONG, f"set aside without a word: {opened.told!r}")
    if opened.rows != known.rows or opened.told:
        named = "metrics.jsonl" in opened.told
        return (_ROWS, "") if named else (_WRONG, f"rows lost without a word: {opened.told!r}")
    return _NONE, ""


def open_run(run: Path, task: Task) -> Opened:
    """Opens a run for training as `--resume` does, but for the training.

    Raises:
        ValueError: it is refused.
    """
    folder = RunFolder(run)
    config = read_description(folder).config
    refuse_damaged_files(folder)
    refuse_other_data(folder, read_system(config, run))
    with _listening() as told:
        with CheckpointStore(folder.checkpoints) as store:
            state, _ = restored_state(task, store)
        MetricsLog(folder.metrics, int(state.step)).close()
    return Opened(int(state.step), leaf_bytes(state), rows_of(run), "\n".join(told))


@contextmanager
def _listening() -> Iterator[list[str]]:
    """What the library logs meanwhile."""
    told: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("lstm_jax")
    propagates, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield told
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagates


def _line(kind: str, files: int, outcomes: Counter[str], failures: list[str]) -> Line:
    told = {
        _REFUSED: "refused by name",
        _OLDER: "the step before used, the bad one set aside and named",
        _ROWS: "named and set aside, the rows that can be read kept",
        _NONE: "without effect: the bytes loaded were right",
    }
    seen = [f"{number} {told[name]}" for name, number in outcomes.most_common() if name in told]
    return Line(
        f"{kind} damaged (a bit flipped, halved, a byte short, emptied, deleted)",
        outcomes.total(),
        tuple(failures),
        f"files: {files}; wrong values loaded: {outcomes[_WRONG]}; {'; '.join(seen)}",
    )
