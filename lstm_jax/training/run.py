"""The run folder: its contents, and loading a trained model from it.

config.json      the settings, and hashes of the data
vocab.json       the tokens
corpus.txt       the text, unless it is a file of the user's
metrics.jsonl    one row per log interval
checkpoints/     training states, one folder per step
curves.png       the curves, if matplotlib is installed
tensorboard/     events, with --tensorboard
wandb/           Weights & Biases' files, with --wandb
nonfinite/       a run that repeats non-finite losses on which training gave up
.lock            held by the process that trains here
"""

import errno
import json
import os
import platform
import shutil
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import jax
from filelock import FileLock, Timeout
from jax import random

from lstm_jax import __version__
from lstm_jax.files import one_line, sha256_of, write_whole
from lstm_jax.settings import MAY_CHANGE, OF_THE_VOCABULARY, flat, marked
from lstm_jax.systems import from_dict, system_of, to_dict
from lstm_jax.systems.base import System, TrainConfig
from lstm_jax.systems.language import CORPUS_FILE
from lstm_jax.text import Vocabulary
from lstm_jax.training.checkpoint import CheckpointStore
from lstm_jax.training.log import read_rows
from lstm_jax.training.optimizer import AVERAGE, changes_of_state

FORMAT = 2

_OLDER_KEYS = frozenset(["format", "config", "data", "written_by"])
"""Version of configs without a checksum."""

_FILES = ("vocab.json", CORPUS_FILE)  # files of which `config.json` may have checksums

_OLDER_VECTORS = "vectors.npy"

_OF_THE_SYSTEM = frozenset(
    [".ds_store", ".directory", "desktop.ini", "ehthumbs.db", "lost+found", "thumbs.db"]
)
"""Files that file managers and file systems leave in a folder, in lower case."""


class RunFolder:
    """Paths in a run folder, as listed in this module's docstring."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.json"
        self.vocabulary = path / "vocab.json"
        self.metrics = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoints"
        self.plot = path / "curves.png"
        self.tensorboard = path / "tensorboard"
        self.lock = path / ".lock"

    @property
    def nonfinite(self) -> Self:
        """Folder of a run that repeats non-finite losses."""
        return type(self)(self.path / "nonfinite")


class Description(NamedTuple):
    """Contents of `config.json`: settings, and SHA-256 of the data and of files by name."""

    config: TrainConfig
    sha256: str
    files: dict[str, str]


def create_run(folder: RunFolder, system: System) -> None:
    """Create the folder and write everything but checkpoints and metrics, `config.json` last.

    Raises ValueError if the folder exists and is not empty.
    """
    refuse_existing(folder)
    folder.path.mkdir(parents=True, exist_ok=True)
    system.vocabulary.save(folder.vocabulary)
    files = system.files()
    for name, content in files.items():
        (folder.path / name).write_bytes(content)
    names = (folder.vocabulary.name, *files)
    write_config(folder, system, {name: sha256_of(folder.path / name) for name in names})


@contextmanager
def held(folder: RunFolder, *, new: bool = False) -> Iterator[None]:
    """Lock the folder, so that no other process trains in it.

    The operating system releases the lock when the process ends, in whatever way. If a new run
    fails before its first row or checkpoint, it is removed. Raises ValueError if another process
    has the lock, or if it is a link, since locking empties the file.
    """
    if folder.lock.is_symlink():
        raise ValueError(f"{folder.lock} is a link to another file; delete it")
    made = [path for path in (folder.path, *folder.path.parents) if not path.exists()]
    folder.path.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.lock, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(
            f"another process is training in {folder.path}; wait for it or stop it, or name "
            "another --run-dir"
        ) from None
    try:
        yield
    except Exception:
        if new:
            _remove_if_not_begun(folder, made)
        raise
    finally:
        lock.release()


def _remove_if_not_begun(folder: RunFolder, made: list[Path]) -> None:
    """Remove a run without any checkpoint or row, and the folders created for it."""
    store = CheckpointStore(folder.checkpoints, read_only=True)
    if not store.is_empty or read_rows(folder.metrics):
        return
    for path in (folder.checkpoints, folder.tensorboard, folder.path / "wandb"):
        shutil.rmtree(path, ignore_errors=True)
    with suppress(OSError):
        for name in (folder.config.name, folder.metrics.name, *_FILES, folder.lock.name):
            (folder.path / name).unlink(missing_ok=True)
        for path in made:
            path.rmdir()


def copy_description(folder: RunFolder, target: RunFolder) -> None:
    """Copy everything in a run folder except checkpoints, metrics and curves."""
    shutil.rmtree(target.path, ignore_errors=True)
    target.path.mkdir(parents=True)
    for name in (folder.config.name, *_FILES):
        if (folder.path / name).is_file():
            shutil.copyfile(folder.path / name, target.path / name)


def refuse_existing(folder: RunFolder) -> None:
    """Raise ValueError if a new run would overwrite something.

    The remains of a process killed while creating the folder do not count: they have no
    `config.json`, which is written last, and `.lock` distinguishes them from a user's folder.
    """
    path, shown = folder.path, f"the run folder {str(folder.path)!r}"
    try:
        str(path).encode()
    except UnicodeEncodeError:  # TensorStore, which writes checkpoints, only takes UTF-8
        raise ValueError(f"{shown} has no name in UTF-8; rename it") from None
    if os.sep == "/" and "\\" in str(path.resolve()):  # a separator to TensorStore
        raise ValueError(f"{shown} has a backslash in its path; name another")
    if path.exists() and not (path.is_dir() and _was_being_made(folder)):
        is_run = folder.config.exists()
        what = "; go on with it (--resume), or" if is_run else " and is no run folder;"
        raise ValueError(f"{path} exists already{what} name another --run-dir")


def _was_being_made(folder: RunFolder) -> bool:
    found = {path.name for path in folder.path.iterdir()}
    names = {name for name in found if name.lower() not in _OF_THE_SYSTEM}
    others = {name for name in names - {folder.lock.name, *_FILES} if not name.endswith(".tmp")}
    return not names or (folder.lock.name in names and not others)


def write_config(folder: RunFolder, system: System, files: Mapping[str, str]) -> None:
    """Write `config.json`, with the SHA-256 of the run's initial `files`."""
    described = {
        "format": FORMAT,
        "config": to_dict(system.config),
        "data": {"sha256": system.sha256, "about": system.summary()},
        "files": dict(files),
        "written_by": {
            "lstm_jax": __version__,
            "python": platform.python_version(),
            "jax": jax.__version__,
            "device": f"{system.config.device_count} x {jax.local_devices()[0].device_kind}",
            "processor_cores": os.cpu_count(),
        },
    }
    described["crc32"] = _crc32(described)
    write_whole(folder.config, json.dumps(described, indent=2, ensure_ascii=False).encode())


def read_description(folder: RunFolder) -> Description:
    """Read `config.json`.

    Raises ValueError if this is no run folder, or its config is damaged or of a newer version.
    """
    if not folder.config.is_file():
        problem = f"{folder.path} is not a run folder (it has no config.json)"
        raise ValueError(f"{problem}; make one with train.py --run-dir, or name another")
    try:
        described = json.loads(folder.config.read_text(encoding="utf-8"))
        if described["format"] != FORMAT:
            raise ValueError(f"its format is {described['format']!r}, this version reads {FORMAT}")
        if set(described) - _OLDER_KEYS and described.get("crc32") != _crc32(described):
            raise ValueError("it does not match its checksum, so it was damaged or changed by hand")
        config, sha256 = from_dict(described["config"]), str(described["data"]["sha256"])
        found = Description(config, sha256, _files(described.get("files", {})))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        problem = f"{'it lacks ' * isinstance(error, KeyError)}{one_line(error)}"
        cure = "; restore it" * (not problem.endswith("restore it"))
        raise ValueError(f"{folder.config} cannot be used: {problem}{cure}") from None
    if (folder.path / _OLDER_VECTORS).exists():
        raise ValueError(
            f"{folder.path} is of an older version, which kept frozen word vectors in "
            f"{_OLDER_VECTORS}; train it anew, or use it with that version"
        )
    return found


def _files(found: Any) -> dict[str, str]:
    """Checksums by file name; no name leads out of the folder."""
    if not isinstance(found, dict) or not all(isinstance(each, str) for each in found.values()):
        raise ValueError("its files are no checksums by name")
    if strange := sorted(set(found) - {*_FILES, _OLDER_VECTORS}):
        raise ValueError(f"it names the file {strange[0]!r:.40}, which this version doesn't know")
    return found


def refuse_damaged_files(folder: RunFolder, *, without_data: bool = False) -> None:
    """Raise ValueError if one of the run's initial files is missing or changed.

    `without_data` allows a missing copy of the training text.
    """
    for name, expected in read_description(folder).files.items():
        if without_data and name == CORPUS_FILE:
            continue
        path = folder.path / name
        try:
            if not path.is_file():
                raise FileNotFoundError(errno.ENOENT, "it is no file")
            found = sha256_of(path)
        except OSError as error:
            raise ValueError(f"cannot read {path} ({error.strerror}); restore it") from None
        if found != expected:
            raise ValueError(
                f"{path} is not what the run wrote (its SHA-256 differs): it was damaged or "
                "changed; restore it"
            )


def _crc32(described: Mapping[str, Any]) -> int:
    """CRC-32 of all other values, independent of the file's layout."""
    rest = {name: value for name, value in described.items() if name != "crc32"}
    return zlib.crc32(json.dumps(rest, sort_keys=True).encode())


def refuse_changes(folder: RunFolder, asked: TrainConfig) -> None:
    """Raise ValueError if a resumed run would change settings that its checkpoints depend on."""
    if changed := "; ".join(_changed(folder, asked).values()):
        raise ValueError(
            f"cannot resume {folder.path} with other settings: {changed}; leave these as they "
            "were, or begin a new run, of the same model with the weights of this one: "
            f"--init-from {folder.path} --run-dir ANOTHER"
        )


def refuse_other_model(folder: RunFolder, asked: TrainConfig) -> None:
    """Raise ValueError if a new run cannot use this one's weights and vocabulary."""
    refuse_damaged_files(folder, without_data=True)
    fixed, changed = set(marked(type(asked), OF_THE_VOCABULARY)), _changed(folder, asked)
    problems = [changed[name] for name in changed if name in fixed or name.startswith("model.")]
    if problems:
        raise ValueError(
            f"cannot begin with the weights of {folder.path} and other settings of the model: "
            f"{'; '.join(problems)}; leave these as they are there, or leave --init-from"
        )


def _changed(folder: RunFolder, asked: TrainConfig) -> dict[str, str]:
    """Settings, by name, that a resumed run must not change but does."""
    config = read_description(folder).config
    kept, changeable = flat(to_dict(config)), set(marked(type(asked), MAY_CHANGE))
    of_state = changes_of_state(config.optimizer, asked.optimizer)
    fixed = {f"optimizer.{name}" for name in of_state}
    return {
        name: f"{name} is {value!r}, the run has {kept.get(name)!r}"
        for name, value in flat(to_dict(asked)).items()
        if value != kept.get(name)
        and (name in fixed or not {name, name.partition(".")[0]} & changeable)
    }


def refuse_other_data(folder: RunFolder, system: System) -> None:
    """Raise ValueError unless data and vocabulary are the run's."""
    if read_description(folder).sha256 != system.sha256:
        raise ValueError(
            f"the data is not what {folder.path} was trained on (its SHA-256 differs); "
            "name the old data with --data, or go on with other data in a new run: "
            f"--init-from {folder.path} --run-dir ANOTHER"
        )
    if Vocabulary.load(folder.vocabulary) != system.vocabulary:
        raise ValueError(
            f"{folder.vocabulary} is not the vocabulary of the run's data; restore it, or start a "
            "new run"
        )


Step = int | Literal["newest", "best"]
"""Which checkpoint: that of a step, the newest good one, or the one with the best held-out loss."""


class Loaded(NamedTuple):
    """A trained model, for use in other code.

    Attributes:
        model: a `LanguageModel` or a `Classifier`.
        params: its parameters.
        vocabulary: maps text to the model's ids.
        config: the run's settings.

    Examples:
        >>> loaded = lstm_jax.load("runs/docs", step="best")
        >>> loaded.model.vocabulary_size == len(loaded.vocabulary)
        True
    """

    model: Any
    params: Any
    vocabulary: Vocabulary
    config: Any


def load(
    run_dir: str | os.PathLike[str], *, step: Step | None = None, kind: type[Any] = object
) -> Loaded:
    """Load a trained model, without its optimizer.

    Args:
        run_dir: a folder made by `train.py`.
        step: which checkpoint; None takes a classifier's best one and a language model's newest.
        kind: expected class of the model, such as `LanguageModel`.

    Raises:
        ValueError: the folder is no run folder, lacks the checkpoint, or has another kind of model.

    Examples:
        >>> model, params, vocabulary, config = lstm_jax.load("runs/docs")
        >>> ids = vocabulary.encode("the")
        >>> carry, logits = model.apply(params, None, ids[:, None])
        >>> logits.shape == (3, 1, len(vocabulary))
        True
    """
    folder = RunFolder(Path(run_dir))
    config = read_description(folder).config
    refuse_damaged_files(folder, without_data=True)
    vocabulary = Vocabulary.load(folder.vocabulary)
    system = system_of(config)
    model = system.model_of(config, len(vocabulary))
    if not isinstance(model, kind):
        raise ValueError(
            f"{run_dir} holds a {type(model).__name__}, and this needs a {kind.__name__}; "
            f"{system.use} {run_dir}"
        )
    params = learnt_params(folder, jax.eval_shape(model.init, random.key(0)), step)
    return Loaded(model, params, vocabulary, config)


def learnt_params(folder: RunFolder, template: Any, step: Step | None = None) -> Any:
    """The parameters of a checkpoint, by default a run's newest or a classifier's best.

    Raises ValueError if there is none, or its parameters do not match the template.
    """
    config = read_description(folder).config
    step = system_of(config).used_step if step is None else step
    of = AVERAGE if config.optimizer.average_after else "params"
    store = CheckpointStore(folder.checkpoints, read_only=True)
    number = step if isinstance(step, int) else None
    number = store.best_step() if step == "best" else number
    return store.restore(template, step=number, of=of).state
