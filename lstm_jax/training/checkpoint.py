"""Checkpoints on disk: the one file of this package that imports Orbax.

A checkpoint is a folder named by its step. Orbax writes it under a temporary name and renames it,
so it is whole or absent. It holds `state`, every array under the path of its leaf (for example
`params/layers/0/w_x`), and in Orbax's metadata file a record: the progress, the held-out loss and
the dtype, shape and CRC-32 of each leaf, under a CRC-32 of its own, so that no flipped bit loads
unnoticed. Values travel as whole arrays through host memory: the number of devices may change.
"""

import contextlib
import json
import logging
import math
import operator
import os
import re
import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts

from lstm_jax.training.damage import set_aside

_FORMAT = 1
_LEFTOVER = re.compile(r"(\d+)(\.orbax-checkpoint-tmp.*|\.replaced)")
_RECORD = "_CHECKPOINT_METADATA"
_STEP = re.compile(r"0|[1-9]\d*")
_log = logging.getLogger(__name__)


class CheckpointError(ValueError):
    """A checkpoint cannot be written, found, read or matched; says where and what to do."""


class _DamagedError(CheckpointError):
    """One step cannot be trusted; an older one may still be good."""


class Saved(NamedTuple):
    """What a checkpoint gives back; `state` has the structure of the template."""

    step: int
    state: Any
    progress: dict[str, Any]


class CheckpointStore:
    """The checkpoints in one local folder, written by a thread of the store's own.

    A context manager. One writing store per folder at a time, any number of reading ones beside it.
    A writing store creates the folder and clears what interrupted saves left there.

    Args:
        directory: the folder.
        keep_latest: how many of the highest steps to keep.
        keep_best: keep the step with the lowest held-out loss besides.
        read_only: never create, write or delete anything.

    Raises:
        CheckpointError: `keep_latest` is below 1, or the folder cannot be written.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        keep_latest: int = 3,
        keep_best: bool = True,
        read_only: bool = False,
    ) -> None:
        if keep_latest < 1:
            raise CheckpointError(f"keep_latest is {keep_latest}; expected 1 or more")
        self.directory = Path(directory).resolve()
        self._keep_latest, self._keep_best, self._read_only = keep_latest, keep_best, read_only
        self._pending: tuple[int, Future[None]] | None = None
        try:
            if not read_only:
                self._clear_leftovers()
        except OSError as error:
            message = f"cannot write to {self.directory} ({_reason(error)}); name another folder"
            raise CheckpointError(message) from None
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")

    def save(
        self,
        step: int,
        state: Any,
        progress: Mapping[str, Any],
        *,
        heldout_loss: float | None = None,
    ) -> None:
        """Copy the state to host memory, then write it in the background.

        On return the state may be donated. A save waits for the one before it. A step that is there
        already is replaced, and goes only when its successor is whole.

        Args:
            step: 0 or more.
            state: a pytree of arrays and typed PRNG keys, without Python scalars.
            progress: JSON values; floats come back exactly, tuples as lists.
            heldout_loss: None and NaN are never the best.

        Raises:
            CheckpointError: the save before this one failed (then repeat this one), the store is
                read-only, or something in `state` or `progress` cannot be saved.
        """
        if self._read_only:
            raise CheckpointError(f"{self.directory} was opened with read_only=True; nothing saved")
        self.wait()
        step = operator.index(step)
        if step < 0:
            raise CheckpointError(f"step is {step}; expected 0 or more")
        arrays, entries = _snapshot(state)
        loss = None if heldout_loss is None else float(heldout_loss)
        try:
            record = json.loads(json.dumps({"progress": dict(progress), "heldout_loss": loss}))
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"progress is not JSON ({_reason(error)}); convert it") from None
        record |= {"format": _FORMAT, "arrays": entries}
        self._pending = step, self._writer.submit(self._write, step, arrays, record)

    def wait(self) -> None:
        """Block until the save in progress is on disk.

        Raises:
            CheckpointError: it failed. Said once; the store can go on saving.
        """
        if self._pending is None:
            return
        step, future = self._pending
        error = future.exception()
        self._pending = None
        if error is not None:
            raise CheckpointError(
                f"step {step} was not saved in {self.directory} ({_reason(error)}); "
                "free space there or make it writable, then save again"
            )

    def steps(self) -> list[int]:
        """List the complete steps on disk, ascending; a save in progress is not among them."""
        return [step for step in self._numbered() if self._is_complete(step)]

    @property
    def is_empty(self) -> bool:
        """Whether there is no checkpoint, not even a damaged one."""
        return not self._numbered()

    def latest_step(self) -> int | None:
        """Give the highest complete step."""
        return max(self.steps(), default=None)

    def best_step(self) -> int | None:
        """Give the step of the lowest held-out loss, the first of equals; None if none has one."""
        losses = {step: self._heldout_loss(step) for step in self.steps()}
        known = [step for step in losses if not math.isnan(losses[step])]
        return min(known, key=losses.__getitem__, default=None)

    def restore(self, template: Any, *, step: int | None = None) -> Saved:
        """Load a whole state, after the save in progress.

        Args:
            template: the state with arrays or `jax.ShapeDtypeStruct`s as leaves. A value goes where
                its leaf's sharding says; without one, where JAX puts new arrays. A key keeps the
                implementation that it was saved with, whatever that of its leaf.
            step: by default the newest good one; passing over a damaged one logs a warning, and a
                writing store renames it to STEP.damaged.

        Raises:
            CheckpointError: the step is not there, is damaged, or does not match the template.
        """
        return self._restore(template, "", step)

    def restore_params(self, template: Any, *, step: int | None = None) -> Saved:
        """Load the sub-tree `params` alone, as `Saved.state`, onto the default device.

        Takes a template of that sub-tree (its shardings are ignored) and raises as `restore` does.
        """
        return self._restore(template, "params", step)

    def close(self) -> None:
        """Finish the save in progress and end the thread; raises as `wait` does."""
        try:
            self.wait()
        finally:
            self._writer.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: object, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except CheckpointError as failure:
            if error is None:
                raise
            _log.error("%s", failure)  # the error on its way out matters more

    def _write(self, step: int, arrays: dict[str, np.ndarray], record: dict[str, Any]) -> None:
        """In the writer's thread: everything that takes time."""
        target = self.directory / str(step)
        try:
            self._clear_leftovers()
            for name, value in arrays.items():
                record["arrays"][name]["crc32"] = _crc32(value)
            text = json.dumps(record)
            # In the metadata file, not an item of its own: when one of two items fails, Orbax goes
            # on writing the other behind our back.
            extra = {"crc32": zlib.crc32(text.encode()), "text": text}
            full = {name: value for name, value in arrays.items() if value.size}
            items = ocp.args.Composite(state=ocp.args.PyTreeSave(full))
            if target.exists():
                target.rename(target.with_suffix(".replaced"))
            with _manager(self.directory) as manager:
                manager.save(step, args=items, custom_metadata=extra, force=True)
            self._clear_leftovers()
            self._prune(step)
        except BaseException:
            with contextlib.suppress(OSError):
                self._clear_leftovers()
            raise

    def _clear_leftovers(self) -> None:
        """Remove half-done writes and deletions; put back what no successor replaced."""
        self.directory.mkdir(parents=True, exist_ok=True)
        for path in list(self.directory.iterdir()):
            found = _LEFTOVER.fullmatch(path.name)
            if found and found[2] == ".replaced" and not self._is_complete(int(found[1])):
                path.rename(path.with_suffix(""))
            elif found:
                shutil.rmtree(path, ignore_errors=True)  # after a failure still being written to

    def _prune(self, written: int) -> None:
        steps = self.steps()
        best = self.best_step() if self._keep_best else None
        for step in set(steps) - {written, best, *steps[-self._keep_latest :]}:
            path = self.directory / str(step)
            # Renamed first: half a deletion must not look like a checkpoint.
            shutil.rmtree(path.rename(path.with_suffix(".orbax-checkpoint-tmp-deleted")))

    def _numbered(self) -> list[int]:
        """Each folder that has a step for a name and is not empty, ascending."""
        try:
            paths = [path for path in self.directory.iterdir() if _STEP.fullmatch(path.name)]
            return sorted(int(path.name) for path in paths if path.is_dir() and any(path.iterdir()))
        except FileNotFoundError:
            return []
        except OSError as error:
            message = f"cannot list {self.directory} ({_reason(error)}); name a readable folder"
            raise CheckpointError(message) from None

    def _is_complete(self, step: int) -> bool:
        path = self.directory / str(step)
        return all((path / name).is_file() for name in (_RECORD, "state/manifest.ocdbt"))

    def _heldout_loss(self, step: int) -> float:
        with contextlib.suppress(CheckpointError):
            loss = _read_record(self.directory / str(step))["heldout_loss"]
            return math.nan if loss is None else float(loss)
        return math.nan

    def _restore(self, template: Any, prefix: str, step: int | None) -> Saved:
        if self._pending is not None:
            wait_for([self._pending[1]])
        wanted, treedef = _named_leaves(template, prefix)
        steps = self._numbered()
        if not steps or (step is not None and step not in steps):
            asked = "" if step is None else f" of step {step}"
            there = f"there are {', '.join(map(str, steps))}" if steps else "save one there first"
            raise CheckpointError(f"no checkpoint{asked} in {self.directory}; {there}")
        damaged: dict[Path, str] = {}
        for candidate in reversed(steps) if step is None else [step]:
            path = self.directory / str(candidate)
            try:
                record = _read_record(path)
                entries = _match(record["arrays"], wanted, prefix, path)
                values = _read_arrays(path, entries)
            except _DamagedError as damage:
                if step is not None:
                    raise
                damaged[path] = str(damage)
                continue
            placed = [_place(values[n], entries[n], n, wanted[n], prefix) for n in wanted]
            self._pass_over(damaged, aside=not self._read_only)
            return Saved(candidate, treedef.unflatten(placed), record["progress"])
        self._pass_over(damaged, aside=False)
        raise CheckpointError(f"every checkpoint in {self.directory} is damaged; start a new run")

    def _pass_over(self, damaged: dict[Path, str], *, aside: bool) -> None:
        """Names the steps that cannot be loaded, and has them out of the way of those that can."""
        for path, message in damaged.items():
            kept = ""
            if aside:
                with contextlib.suppress(OSError):
                    kept = f"; kept as {set_aside(path)}"
            _log.warning("%s%s", message, kept)


class _Arrays(ocp.type_handlers.NumpyHandler):  # type: ignore[misc]
    """Writes all arrays in one transaction of TensorStore's, into the index that is read later.

    Orbax's own handler describes each array by TensorStore's `Spec.to_json()`, which never frees
    its strings (about 10 KB a save), and when one array fails, it leaves the others running into a
    closed event loop, where each of them prints a traceback.
    """

    async def serialize(
        self, values: Sequence[np.ndarray], infos: Sequence[Any], args: Any = None
    ) -> list[ocp.future.Future]:
        """See Orbax's `TypeHandler`; nobody changes `values` meanwhile."""
        writing = self._write(values, infos)
        return [ocp.future.CommitFutureAwaitingContractedSignals(writing, name="arrays")]

    async def _write(self, values: Sequence[np.ndarray], infos: Sequence[Any]) -> None:
        context, transaction = ts.Context(), ts.Transaction(atomic=True)
        for value, info in zip(values, infos, strict=True):
            await info.await_path_creation()
            store = await ts.open(
                _spec(info.parent_dir, info.name),
                create=True,
                dtype=value.dtype,
                shape=value.shape,
                context=context,
                transaction=transaction,
            )
            await store.write(value)
        await transaction.commit_async()


@contextlib.contextmanager
def _manager(directory: Path) -> Iterator[ocp.CheckpointManager]:
    """Open an Orbax manager for one save: a failed one spoils it, and a new one costs 4 ms.

    What Orbax logs meanwhile is dropped, for what matters is raised.
    """

    def is_foreign(entry: logging.LogRecord) -> bool:
        return f"{os.sep}orbax{os.sep}" not in entry.pathname

    logger = logging.getLogger("absl")
    logger.addFilter(is_foreign)
    options = ocp.CheckpointManagerOptions(
        create=False,
        enable_async_checkpointing=False,
        save_root_metadata=False,
        lightweight_initialize=True,
    )
    arrays = ocp.type_handlers.create_type_handler_registry((np.ndarray, _Arrays()))
    handlers = {"state": ocp.PyTreeCheckpointHandler(type_handler_registry=arrays)}
    try:
        with contextlib.closing(
            ocp.CheckpointManager(directory, options=options, item_handlers=handlers)
        ) as manager:
            yield manager
    finally:
        logger.removeFilter(is_foreign)


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
    """Read the arrays and compare each with its checksum.

    TensorStore reads what Orbax wrote: when one array fails, Orbax's own reader leaves the others'
    reads running into a closed event loop, and each of them prints a traceback.
    """
    context = ts.Context()  # the index is read once per call and not remembered beyond it
    full = [name for name, entry in entries.items() if math.prod(entry["shape"])]
    try:
        specs = [_spec(path / "state", name) for name in full]
        opening = [ts.open(spec, open=True, read=True, context=context) for spec in specs]
        reading = [store.result().read() for store in opening]
        values = dict(zip(full, (np.asarray(future.result()) for future in reading), strict=True))
    except Exception as error:  # whatever becomes of broken files
        raise _damaged(path, _reason(error)) from None
    for name, entry in entries.items():
        if name not in values:
            values[name] = np.zeros(entry["shape"], jnp.dtype(entry["dtype"]))
        if _crc32(values[name]) != entry["crc32"]:
            raise _damaged(path, f"leaf {name!r} does not match its checksum")
    return values


def _spec(folder: Path, name: str) -> dict[str, Any]:
    """Where TensorStore finds an array; zeros are written too, as Orbax writes them."""
    index = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{folder}/"}}
    return {
        "driver": "zarr",
        "kvstore": index | {"path": f"{name}/"},
        "store_data_equal_to_fill_value": True,
    }


def _named_leaves(tree: Any, prefix: str) -> tuple[dict[str, Any], jax.tree_util.PyTreeDef]:
    """Leaves by path; attributes, keys and indices read alike, so containers may differ."""
    leaves, treedef = jax.tree_util.tree_flatten_with_path(tree)
    named: dict[str, Any] = {}
    for path, leaf in leaves:
        parts = [prefix, jax.tree_util.keystr(path, simple=True, separator="/")]
        name = "/".join(filter(None, parts))
        if not hasattr(leaf, "dtype") or not hasattr(leaf, "shape"):
            raise CheckpointError(f"leaf {name!r} is {leaf!r}; make it an array")
        if name in named or "//" in f"{name}/":
            raise CheckpointError(f"leaf name {name!r} is taken or has an empty part; rename it")
        named[name] = leaf
    return named, treedef


def _snapshot(state: Any) -> tuple[dict[str, np.ndarray], dict[str, dict[str, Any]]]:
    """Copy the arrays to host memory; with them, what the record says of each."""
    leaves, _ = _named_leaves(state, "")
    if not any(math.prod(leaf.shape) for leaf in leaves.values()):
        raise CheckpointError("the state holds no values; pass the whole training state")
    entries: dict[str, dict[str, Any]] = {}
    for name, leaf in leaves.items():
        entries[name] = {"dtype": str(leaf.dtype), "shape": list(leaf.shape)}
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            raise CheckpointError(f"leaf {name!r} is spread over processes; gather it in one")
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            entries[name]["key_impl"] = str(jax.random.key_impl(leaf))
            leaves[name] = jax.random.key_data(leaf)
    for name, leaf in leaves.items():
        if isinstance(leaf, jax.Array):
            leaf.copy_to_host_async()
        elif leaf.dtype.kind in "OSUMm" or not leaf.dtype.isnative:
            raise CheckpointError(f"leaf {name!r} is {leaf.dtype.str}; make it a JAX array")
    # On CPU a view would share the buffer that the next step, to which it is donated, writes to.
    return {name: np.array(leaf, copy=True) for name, leaf in leaves.items()}, entries


def _match(
    entries: dict[str, dict[str, Any]], wanted: dict[str, Any], prefix: str, path: Path
) -> dict[str, dict[str, Any]]:
    """Select the entries under `prefix`, provided that they are exactly the wanted leaves."""
    start = f"{prefix}/" if prefix else ""
    saved = {name: entry for name, entry in entries.items() if f"{name}/".startswith(start)}
    problems = [f"{name!r} is not in the checkpoint" for name in wanted if name not in saved]
    problems += [f"{name!r} is not in the template" for name in saved if name not in wanted]
    for name in (name for name in wanted if name in saved):
        dtype: Any = wanted[name].dtype
        if jnp.issubdtype(dtype, jax.dtypes.prng_key) and "key_impl" in saved[name]:
            dtype = saved[name]["dtype"]  # a key comes back as it was drawn
        has = f"{saved[name]['dtype']}{saved[name]['shape']}"
        wants = f"{dtype}{list(wanted[name].shape)}"
        if has != wants:
            problems.append(f"{name!r} is {has} in the checkpoint, {wants} in the template")
    if problems:
        shown = "; ".join(problems[:4]) + f" and {len(problems) - 4} more" * (len(problems) > 4)
        cure = "build the state with the settings it was saved with"
        raise CheckpointError(f"{path} does not match the template: {shown}; {cure}")
    return saved


def _place(
    value: np.ndarray, entry: dict[str, Any], name: str, leaf: Any, prefix: str
) -> jax.Array:
    if jax.dtypes.canonicalize_dtype(value.dtype) != value.dtype:
        raise CheckpointError(f"leaf {name!r} is {value.dtype}; set jax_enable_x64 to load it")
    uncommitted = isinstance(leaf, jax.Array) and not leaf.committed
    sharding = None if prefix or uncommitted else getattr(leaf, "sharding", None)
    array: jax.Array = jax.device_put(value, None if "key_impl" in entry else sharding)
    if "key_impl" in entry:
        array = jax.random.wrap_key_data(array, impl=entry["key_impl"])
        array = array if sharding is None else jax.device_put(array, sharding)
    return array


def _crc32(value: np.ndarray) -> int:
    """Of dtype, shape and bytes."""
    label = f"{value.dtype}{value.shape}".encode()
    raw: Any = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
    return zlib.crc32(raw, zlib.crc32(label))


def _damaged(path: Path, reason: str) -> _DamagedError:
    return _DamagedError(f"{path} is damaged ({reason}); delete it, or restore an older step")


def _reason(error: BaseException) -> str:
    """One short line, whatever the error's own message is like."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__
