"""Checkpoints on disk; the only module of this package that imports Orbax.

A checkpoint is a folder named by its step, written under a temporary name and renamed, so it is
complete or absent. Orbax writes and reads its `state`, which has every array under the path of its
leaf (for example `params/layers/0/w_x`). Orbax's metadata file also contains our record: the
progress, the held-out loss, the dtype, shape and CRC-32 of each leaf, and the record's own CRC-32,
so that no flipped bit goes unnoticed. If a leaf is split among processes, each part has its CRC-32.
The number of devices and processes may change between saving and restoring.

If a run has several processes, all of them must open a writing store, save and restore together:
each writes its parts of the arrays, and the first one the rest. All raise a failure of any.
"""

import contextlib
import gc
import json
import logging
import math
import operator
import os
import re
import shutil
import sys
import time
import warnings
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from lstm_jax.files import one_line, set_aside, write_whole
from lstm_jax.training.leaves import (
    CheckpointError,
    DamagedError,
    crc32_of,
    described,
    match,
    named_leaves,
    place,
)
from lstm_jax.training.leftovers import remove_for_good, wait_for_orbax
from lstm_jax.training.processes import gathered, is_first, together

_FORMAT = 1
_RECORD = "_CHECKPOINT_METADATA"
_UNFINISHED = ".orbax-checkpoint-tmp"
_FROZEN_BY_PYTHON = 1000  # at most: 3.12 begins with a few hundred objects; more are the user's
_STEP = re.compile(r"0|[1-9]\d*")
_log = logging.getLogger(__name__)
T = TypeVar("T")


class Saved(NamedTuple):
    """A restored checkpoint; `state` has the structure of the template."""

    step: int
    state: Any
    progress: dict[str, Any]


class CheckpointStore:
    """The checkpoints in one local folder.

    A folder may have one writing store at a time, which creates it, and any number of reading ones.

    It keeps `keep_latest` steps, the one saved last and the highest of the others, in addition to
    the one with the lowest held-out loss. With `read_only` it never creates, writes or deletes
    anything. Raises CheckpointError if it cannot write, or Orbax would write to another folder.
    """

    def __init__(
        self, directory: str | os.PathLike[str], *, keep_latest: int = 3, read_only: bool = False
    ) -> None:
        if keep_latest < 1:
            raise CheckpointError(f"keep_latest is {keep_latest}; expected 1 or more")
        self.directory = Path(directory).resolve()
        self._keep_latest, self._read_only = keep_latest, read_only
        if read_only:
            return
        path = str(self.directory)
        if pattern := set("*?[") & {*path}:
            problem = f"the path {path!r} has a {min(pattern)}"
            cure = "by which Orbax would write to other folders; name another"
            raise CheckpointError(f"{problem}, {cure}")

        def make_folder() -> None:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._settle_replaced()

        try:
            together(make_folder, first_only=True)
        except (OSError, ValueError) as error:
            message = f"cannot write to {self.directory} ({_reason(error)}); name another folder"
            raise CheckpointError(message) from None

    def save(
        self,
        step: int,
        state: Any,
        progress: Mapping[str, Any],
        *,
        heldout_loss: float | None = None,
    ) -> None:
        """Write the state to disk before returning, then delete steps that need not be kept.

        An existing step is replaced, and deleted only when its replacement is complete. The state
        is a pytree of arrays and typed PRNG keys, without Python scalars; the progress consists of
        JSON values. A held-out loss of None or NaN is never the best.

        Raises:
            CheckpointError: the store is read-only, something in `state` or `progress` cannot be
                saved, or writing failed. Earlier steps and the store remain usable.
        """
        if self._read_only:
            raise CheckpointError(f"{self.directory} was opened with read_only=True; nothing saved")
        step = operator.index(step)
        if step < 0:
            raise CheckpointError(f"step is {step}; expected 0 or more")
        arrays, entries = described(state)
        loss = math.nan if heldout_loss is None else float(heldout_loss)
        record = {"format": _FORMAT, "progress": dict(progress), "heldout_loss": loss}
        try:
            text = json.dumps(record | {"arrays": entries})
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"progress is not JSON ({_reason(error)}); convert it") from None
        try:
            self._write(step, arrays, text, loss)
        except ValueError as error:
            if is_first():
                self._remove_leftovers(self.directory / f"{step}{_UNFINISHED}")
            raise CheckpointError(
                f"step {step} was not saved in {self.directory} ({error}); "
                "free space there or make it writable, then save again"
            ) from None

    def steps(self) -> list[int]:
        """List the steps on disk, ascending, including damaged ones."""
        try:
            paths = [path for path in self.directory.iterdir() if _STEP.fullmatch(path.name)]
            return sorted(int(path.name) for path in paths if path.is_dir() and any(path.iterdir()))
        except FileNotFoundError:
            return []
        except OSError as error:
            message = f"cannot list {self.directory} ({_reason(error)}); name a readable folder"
            raise CheckpointError(message) from None

    @property
    def is_empty(self) -> bool:
        """Whether there is no checkpoint, not even a damaged one."""
        return not self.steps()

    def best_step(self) -> int | None:
        """Return the step with the lowest held-out loss (the first, if tied), or None."""
        return _lowest({step: self._heldout_loss(step) for step in self.steps()})

    def restore(self, template: Any, *, step: int | None = None, of: str = "") -> Saved:
        """Load a whole state, by default that of the newest good step, or only its sub-tree `of`.

        The template is that tree with arrays or `jax.ShapeDtypeStruct`s as leaves. A leaf's
        sharding decides where its value is placed; without one, JAX does. Keys keep the
        implementation that they were saved with. Skipping a damaged step logs a warning, and a
        writing store renames it to STEP.damaged.

        Raises:
            CheckpointError: the step does not exist, is damaged, or does not match the template.
        """
        wanted, treedef = named_leaves(template, of)
        steps: list[int] = json.loads(self._gathered(json.dumps(self.steps()))[0])
        if not steps or (step is not None and step not in steps):
            asked = "" if step is None else f" of step {step}"
            there = f"there are {', '.join(map(str, steps))}" if steps else "save one there first"
            raise CheckpointError(f"no checkpoint{asked} in {self.directory}; {there}")
        damaged: dict[Path, str] = {}
        for candidate in reversed(steps) if step is None else [step]:
            path, damage = self.directory / str(candidate), ""
            try:
                record = _read_record(path)
                entries = match(record["arrays"], wanted, of, path)
                values = _read_arrays(path, entries)
            except DamagedError as error:
                damage = str(error)
            if damage := max(self._gathered(damage)):
                if step is not None:
                    raise DamagedError(damage) from None
                damaged[path] = damage
                continue
            placed = [place(values[n], entries[n], n, wanted[n]) for n in wanted]
            self._set_aside(damaged, aside=not self._read_only and is_first())
            return Saved(candidate, treedef.unflatten(placed), record["progress"])
        self._set_aside(damaged, aside=False)
        raise CheckpointError(f"every checkpoint in {self.directory} is damaged; start a new run")

    def _write(self, step: int, arrays: dict[str, Any], record: str, loss: float) -> None:
        """Write in three parts; after each, all processes know whether it succeeded in all."""
        unfinished, target = (self.directory / f"{step}{end}" for end in (_UNFINISHED, ""))
        state, writer = epath.Path(unfinished / "state"), ocp.PyTreeCheckpointHandler()

        def begin() -> None:
            self._remove_leftovers()
            state.mkdir(parents=True)

        def finish() -> None:
            writer.finalize(state)
            _write_record(unfinished / _RECORD, record, type(writer))
            if target.exists():  # moved aside until this one is in its place
                target.rename(target.with_suffix(".replaced"))
            try:
                unfinished.rename(target)
            finally:
                self._settle_replaced()
            self._delete_older(step, loss)

        together(lambda: _quietly(begin), first_only=True)
        together(lambda: _quietly(lambda: writer.save(state, args=ocp.args.PyTreeSave(arrays))))
        together(lambda: _quietly(finish), first_only=True)

    def _delete_older(self, step: int, loss: float) -> None:
        """Delete all but the newest steps, the one with the lowest loss, and this one."""
        losses = {each: self._heldout_loss(each) for each in self.steps()}
        others = sorted(losses.keys() - {step}, reverse=True)
        kept = {step, _lowest(losses | {step: loss}), *others[: self._keep_latest - 1]}
        for each in losses.keys() - kept:
            path = self.directory / str(each)
            path = path.rename(f"{path}.old{_UNFINISHED}")  # no half-deleted checkpoints
            shutil.rmtree(path, ignore_errors=True)

    def _remove_leftovers(self, *expected: Path) -> None:
        """Delete what failed or interrupted saves left, and may still be writing."""
        for leftover in {*self.directory.glob(f"*{_UNFINISHED}*"), *expected}:
            remove_for_good(leftover)

    def _settle_replaced(self) -> None:
        """Restore what a failed save was to replace, or delete it if the save succeeded."""
        for path in self.directory.glob("*.replaced"):
            if path.with_suffix("").exists():
                shutil.rmtree(path)
            else:
                path.rename(path.with_suffix(""))

    def _heldout_loss(self, step: int) -> float:
        try:
            return float(_read_record(self.directory / str(step))["heldout_loss"])
        except CheckpointError:
            return math.nan

    def _gathered(self, text: str) -> list[str]:
        """Texts of all processes; a reading store only has its own."""
        return [text] if self._read_only else gathered(text)

    def _set_aside(self, damaged: dict[Path, str], *, aside: bool) -> None:
        """Log the steps that cannot be loaded, and rename them out of the way."""
        for path, message in damaged.items():
            with contextlib.suppress(OSError):
                message += f"; kept as {set_aside(path)}" if aside else ""
            _log.warning("%s", message)


def _quietly(work: Callable[[], T]) -> T:
    """Run Orbax without its printed messages; what matters is raised as CheckpointError.

    When one array fails, Orbax closes its event loop while TensorStore is still working on others,
    each of which then prints a complaint about the loop, its exception or its coroutine.
    """
    loggers, hook = (logging.getLogger("absl"), logging.getLogger("asyncio")), sys.unraisablehook

    def is_foreign(entry: logging.LogRecord) -> bool:
        return f"{os.sep}orbax{os.sep}" not in entry.pathname and entry.name != "asyncio"

    def report(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            hook(unraisable)

    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
        if gc.get_freeze_count() < _FROZEN_BY_PYTHON:
            # The search for remaining work then skips all existing objects.
            gc.freeze()
            stack.callback(gc.unfreeze)
        stack.callback(setattr, sys, "unraisablehook", hook)
        sys.unraisablehook = report
        for logger in loggers:
            stack.callback(logger.removeFilter, is_foreign)
            logger.addFilter(is_foreign)
        try:
            return work()
        except Exception as error:
            reason = _reason(error)
        wait_for_orbax()
    raise CheckpointError(reason)


def _lowest(losses: Mapping[int, float]) -> int | None:
    known = [step for step in sorted(losses) if not math.isnan(losses[step])]
    return min(known, key=losses.__getitem__, default=None)


def _write_record(path: Path, text: str, handler: type[Any]) -> None:
    """Write the record like Orbax's own manager would."""
    now = time.time_ns()
    found = {
        "item_handlers": {"state": f"{handler.__module__}.{handler.__qualname__}"},
        "metrics": {},
        "performance_metrics": {},
        "init_timestamp_nsecs": now,
        "commit_timestamp_nsecs": now,
        "custom_metadata": {"crc32": zlib.crc32(text.encode()), "text": text},
    }
    write_whole(path, json.dumps(found).encode())


def _read_record(path: Path) -> dict[str, Any]:
    try:
        stored = json.loads((path / _RECORD).read_text())["custom_metadata"]
        if zlib.crc32(stored["text"].encode()) != stored["crc32"]:
            raise ValueError("the record does not match its checksum")
        record: dict[str, Any] = json.loads(stored["text"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise _damaged(path, _reason(error)) from None
    if record["format"] != _FORMAT:
        found = record["format"]
        raise CheckpointError(f"{path} has format {found}, not {_FORMAT}; use the version it is of")
    return record


def _read_arrays(path: Path, entries: dict[str, dict[str, Any]]) -> dict[str, np.ndarray]:
    """Read the arrays and verify their checksums."""
    as_numpy = ocp.RestoreArgs(restore_type=np.ndarray)
    full = {name: as_numpy for name, entry in entries.items() if math.prod(entry["shape"])}
    request = ocp.args.PyTreeRestore(item=full, restore_args=full, partial_restore=True)

    def read() -> dict[str, np.ndarray]:
        return dict(ocp.PyTreeCheckpointHandler().restore(epath.Path(path) / "state", args=request))

    try:
        values = _quietly(read) if full else {}
    except CheckpointError as error:
        raise _damaged(path, str(error)) from None
    for name, entry in entries.items():
        if name not in full:
            values[name] = np.zeros(entry["shape"], jnp.dtype(entry["dtype"]))
        elif not isinstance(values.get(name), np.ndarray):
            raise _damaged(path, f"leaf {name!r} is not there")
        for region, crc32 in entry.get("parts", [[[], entry.get("crc32")]]):
            if crc32_of(values[name][tuple(slice(*each) for each in region)]) != crc32:
                raise _damaged(path, f"leaf {name!r} does not match its checksum")
    return values


def _damaged(path: Path, reason: str) -> DamagedError:
    return DamagedError(f"{path} is damaged ({reason}); delete it, or restore an older step")


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error, 160)}"
