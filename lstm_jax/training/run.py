"""The run folder: what is in it, and how a trained model comes out of it.

config.json      the settings, and which text they were applied to
vocab.json       the tokens
corpus.txt       the text itself, where it is not a file of the user's
metrics.jsonl    one row a log step
checkpoints/     the training state, a folder a step
curves.png       the curves, where matplotlib is present
tensorboard/     events, where --tensorboard asked for them
wandb/           Weights & Biases' files, where --wandb asked for them
nonfinite/       a run of its own: where training gave up on losses that are not finite
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

FORMAT = 2

_OLDER_KEYS = frozenset(["format", "config", "data", "written_by"])
"""Of a config that has no checksum."""

_FILES = ("vocab.json", CORPUS_FILE)  # What `config.json` may have checksums of

_OLDER_VECTORS = "vectors.npy"

_OF_THE_SYSTEM = frozenset(
    [".ds_store", ".directory", "desktop.ini", "ehthumbs.db", "lost+found", "thumbs.db"]
)
"""What file managers and file systems leave in a folder, in lower case."""


class RunFolder:
    """The places in a run folder, as this module's docstring lists them."""

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
        """Where a run is left that repeats losses that are not finite."""
        return type(self)(self.path / "nonfinite")


class Description(NamedTuple):
    """What `config.json` says: the settings, and the SHA-256 of the data and of files, by name."""

    config: TrainConfig
    sha256: str
    files: dict[str, str]


def create_run(folder: RunFolder, system: System) -> None:
    """Makes the folder and writes all but checkpoints and metrics; `config.json` comes last.

    Raises ValueError where the folder exists and is not empty.
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
    """Keeps other processes from training in the folder meanwhile.

    The operating system frees the lock of a process that ends, however it ends. Of a new run that
    an error ends before its first row or checkpoint nothing stays. Raises ValueError where another
    process has the lock, or it is a link: locking empties the file.
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
    """Removes a run that has neither checkpoint nor row, and the folders made for it."""
    with CheckpointStore(folder.checkpoints, read_only=True) as store:
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
    """Copies all that a run folder holds but its checkpoints, metrics and curves."""
    shutil.rmtree(target.path, ignore_errors=True)
    target.path.mkdir(parents=True)
    for name in (folder.config.name, *_FILES):
        if (folder.path / name).is_file():
            shutil.copyfile(folder.path / name, target.path / name)


def refuse_existing(folder: RunFolder) -> None:
    """Raises ValueError where a new run would write over something.

    What a process left that was killed while it made the folder is nothing: `config.json` was to
    come last, and `.lock` tells it from a folder of the user's.
    """
    path, shown = folder.path, f"the run folder {str(folder.path)!r}"
    try:
        str(path).encode()
    except UnicodeEncodeError:  # TensorStore, which writes checkpoints, takes UTF-8 alone
        raise ValueError(f"{shown} has no name in UTF-8; rename it") from None
    if os.sep == "/" and "\\" in str(path.resolve()):  # TensorStore takes it for a separator
        raise ValueError(f"{shown} has a backslash in its path; name another")
    if path.exists() and not (path.is_dir() and _is_barely_begun(folder)):
        is_run = folder.config.exists()
        what = "; go on with it (--resume), or" if is_run else " and is no run folder;"
        raise ValueError(f"{path} exists already{what} name another --run-dir")


def _is_barely_begun(folder: RunFolder) -> bool:
    found = {path.name for path in folder.path.iterdir()}
    names = {name for name in found if name.lower() not in _OF_THE_SYSTEM}
    others = {name for name in names - {folder.lock.name, *_FILES} if not name.endswith(".tmp")}
    return not names or (folder.lock.name in names and not others)


def write_config(folder: RunFolder, system: System, files: Mapping[str, str]) -> None:
    """Writes `config.json`, with the SHA-256 of the `files` of the run's beginning."""
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
    """Reads `config.json`.

    Raises ValueError where it is no run folder, or its config is damaged or of a newer version.
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
        raise ValueError(f"{folder.config} cannot be used: {problem}; restore it") from None
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
    """Raises ValueError if a file of the run's beginning is missing, or no longer what it was.

    With `without_data` a copy of the training text is not needed, and may be missing.
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
    """Of all the values but itself, however they are laid out in the file."""
    rest = {name: value for name, value in described.items() if name != "crc32"}
    return zlib.crc32(json.dumps(rest, sort_keys=True).encode())


def refuse_changes(folder: RunFolder, asked: TrainConfig) -> None:
    """Raises ValueError if a resumed run would differ in what its checkpoints depend on."""
    if changed := "; ".join(_changed(folder, asked).values()):
        raise ValueError(
            f"cannot resume {folder.path} with other settings: {changed}; leave these as they "
            "were, or start a new run"
        )


def refuse_other_model(folder: RunFolder, asked: TrainConfig) -> None:
    """Raises ValueError if a new run has no use for this one's weights and vocabulary."""
    refuse_damaged_files(folder, without_data=True)
    fixed, changed = set(marked(type(asked), OF_THE_VOCABULARY)), _changed(folder, asked)
    problems = [changed[name] for name in changed if name in fixed or name.startswith("model.")]
    if problems:
        raise ValueError(
            f"cannot begin with the weights of {folder.path} and other settings of the model: "
            f"{'; '.join(problems)}; leave these as they are there, or leave --init-from"
        )


def _changed(folder: RunFolder, asked: TrainConfig) -> dict[str, str]:
    """The settings that a resumed run must have as it had them, and has not, by name."""
    kept = flat(to_dict(read_description(folder).config))
    changeable = set(marked(type(asked), MAY_CHANGE))
    return {
        name: f"{name} is {value!r}, the run has {kept.get(name)!r}"
        for name, value in flat(to_dict(asked)).items()
        if value != kept.get(name) and not {name, name.partition(".")[0]} & changeable
    }


def refuse_other_data(folder: RunFolder, system: System) -> None:
    """Raises ValueError if the data or its vocabulary is not the run's."""
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
"""A checkpoint: that of a step, the newest good one, or the one of the lowest held-out loss."""


class Loaded(NamedTuple):
    """A trained model, for use in other code.

    Attributes:
        model: a `LanguageModel` or a `Classifier`.
        params: its parameters.
        vocabulary: turns text into the model's ids.
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
    """Loads a trained model, without its optimizer.

    Args:
        run_dir: a folder that `train.py` made.
        step: which checkpoint; None takes a classifier's best one, and another model's newest.
        kind: what the model is to be, such as `LanguageModel`.

    Raises:
        ValueError: it is no run folder, has no such checkpoint, or its model is of another kind.

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
    drawn = jax.eval_shape(model.init, random.key(0))
    params = _load_params(folder, drawn, step or system.used_step)
    return Loaded(model, params, vocabulary, config)


def learnt_params(folder: RunFolder, template: Any) -> Any:
    """What a run has learnt: the parameters of its newest checkpoint, or of a classifier's best.

    Raises ValueError where it has no checkpoint, or not of parameters like the template.
    """
    return _load_params(folder, template, system_of(read_description(folder).config).used_step)


def _load_params(folder: RunFolder, template: Any, step: Step) -> Any:
    with CheckpointStore(folder.checkpoints, read_only=True) as store:
        number = step if isinstance(step, int) else None
        number = store.best_step() if step == "best" else number
        return store.restore_params(template, step=number).state
