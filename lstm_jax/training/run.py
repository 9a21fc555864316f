"""The run folder: what is in it, and how a trained model comes out of it.

config.json      the settings, and which text they were applied to
vocab.json       the tokens
corpus.txt       the text itself, where it is not a file of the user's
vectors.npy      a classifier's frozen word vectors
metrics.jsonl    one row a log step
checkpoints/     the training state, a folder a step
curves.png       the curves, where matplotlib is present
tensorboard/     events, where --tensorboard asked for them
wandb/           Weights & Biases' files, where --wandb asked for them
nonfinite/       a run of its own: where training gave up on losses that are not finite
.lock            held by the process that trains here
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import platform
import shutil
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from filelock import FileLock, Timeout
from jax import random

from lstm_jax import __version__
from lstm_jax.classifier import Classifier, ClassifierParams
from lstm_jax.models import LanguageModel, LanguageModelParams
from lstm_jax.text import Vocabulary
from lstm_jax.text.checks import one_line
from lstm_jax.training.checkpoint import CheckpointStore
from lstm_jax.training.config import AnyConfig, ReviewsConfig, from_dict, to_dict
from lstm_jax.training.log import read_rows
from lstm_jax.training.systems import System
from lstm_jax.training.systems.reviews import VECTORS_FILE, load_vectors

FORMAT = 2

CORPUS_FILE = "corpus.txt"
"""Where a run folder keeps a text that is not a file of the user's."""

_OLDER_KEYS = frozenset(["format", "config", "data", "written_by"])
"""Of a config that has no checksum."""

_FILES = ("vocab.json", CORPUS_FILE, VECTORS_FILE)
"""What `config.json` may have checksums of."""

_OF_THE_SYSTEM = frozenset(
    [".ds_store", ".directory", "desktop.ini", "ehthumbs.db", "lost+found", "thumbs.db"]
)
"""What file managers and file systems leave in a folder, in lower case."""

_CHANGEABLE = frozenset(
    [
        "data",
        "vectors",
        "steps",
        "epochs",
        "devices",
        "intervals",
        "log_every",
        "evaluate_every",
        "checkpoint_every",
        "keep_checkpoints",
        "patience",
        "skipped_at_most",
        "sample_every",
        "sample_prompts",
        "sample_templates",
        "corpus_on_device_mb",
        "zero_carry_rate",
        "model.dropout",
        "model.dropout_place",
        "model.dense_dropout",
        "model.output_dropout",
        "model.compute_dtype",
        "model.backend",
        "model.unroll",
        "model.remat",
    ]
)
_OF_THE_VOCABULARY = frozenset(["tokens", "min_count", "vocabulary_size", "train_vectors"])

_CHANGEABLE_GROUPS = ("optimizer.", "sample.")


class RunFolder(NamedTuple):
    """The places in a run folder."""

    path: Path

    @property
    def config(self) -> Path:
        """Settings and data."""
        return self.path / "config.json"

    @property
    def vocabulary(self) -> Path:
        """Tokens."""
        return self.path / "vocab.json"

    @property
    def metrics(self) -> Path:
        """Rows of numbers."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Training states."""
        return self.path / "checkpoints"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard events, where they were asked for."""
        return self.path / "tensorboard"

    @property
    def nonfinite(self) -> RunFolder:
        """Where a run is left that repeats losses that are not finite."""
        return RunFolder(self.path / "nonfinite")

    @property
    def lock(self) -> Path:
        """Held by the process that trains here."""
        return self.path / ".lock"

    @property
    def plot(self) -> Path:
        """Curves."""
        return self.path / "curves.png"


class Description(NamedTuple):
    """What `config.json` says.

    Attributes:
        config: the settings.
        sha256: of the data.
        files: SHA-256 of the folder's other files, by name; empty in a run of an older version.
    """

    config: AnyConfig
    sha256: str
    files: dict[str, str]


def create_run(folder: RunFolder, system: System) -> None:
    """Makes the folder and writes all but checkpoints and metrics; `config.json` comes last.

    Raises:
        ValueError: the folder exists and is not empty.
    """
    refuse_existing(folder)
    folder.path.mkdir(parents=True, exist_ok=True)
    system.vocabulary.save(folder.vocabulary)
    names = [folder.vocabulary.name]
    for name, content in system.files().items():
        (folder.path / name).write_bytes(content)
        names.append(name)
    write_config(folder, system, {name: _sha256(folder.path / name) for name in names})


@contextmanager
def held(folder: RunFolder, *, new: bool = False) -> Iterator[None]:
    """Keeps other processes from training in the folder meanwhile.

    The operating system frees the lock of a process that ends, however it ends. Of a new run that
    an error ends before its first row or checkpoint nothing stays.

    Raises:
        ValueError: another process has it, or it is a link: locking empties the file.
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
    names = (folder.config.name, folder.metrics.name, *_FILES, folder.lock.name)
    with suppress(OSError):
        for name in names:
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
    path = folder.path
    try:
        str(path).encode()
    except UnicodeEncodeError:  # TensorStore, which writes checkpoints, takes UTF-8 alone
        raise ValueError(f"the run folder {str(path)!r} has no name in UTF-8; rename it") from None
    if os.sep == "/" and "\\" in str(path.resolve()):  # TensorStore takes it for a separator
        raise ValueError(f"the run folder {str(path)!r} has a backslash in its path; name another")
    if path.exists() and not (path.is_dir() and _is_barely_begun(folder)):
        if folder.config.exists():
            raise ValueError(
                f"{path} exists already; go on with it (--resume), or name another --run-dir"
            )
        raise ValueError(f"{path} exists already and is no run folder; name another --run-dir")


def _is_barely_begun(folder: RunFolder) -> bool:
    names = {found.name for found in folder.path.iterdir()}
    names -= {name for name in names if name.lower() in _OF_THE_SYSTEM}
    early = {folder.lock.name, *_FILES}
    others = {name for name in names - early if not name.endswith(".tmp")}
    return not names or (folder.lock.name in names and not others)


def write_config(folder: RunFolder, system: System, files: Mapping[str, str]) -> None:
    """Writes `config.json`, whole or not at all.

    Args:
        folder: the run's.
        system: settings and data.
        files: SHA-256 of what else the folder holds of the run's beginning.
    """
    described = {
        "format": FORMAT,
        "config": to_dict(system.config),
        "data": {"sha256": system.sha256, "about": system.summary()},
        "files": dict(files),
        "written_by": {
            "lstm_jax": __version__,
            "python": platform.python_version(),
            "jax": jax.__version__,
            "device": f"{system.config.devices} x {jax.local_devices()[0].device_kind}",
            "processor_cores": os.cpu_count(),
        },
    }
    described["crc32"] = _crc32(described)
    temporary = folder.config.with_suffix(".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(described, file, indent=2, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, folder.config)


def read_description(folder: RunFolder) -> Description:
    """Reads `config.json`.

    Raises:
        ValueError: it is no run folder, or its config is damaged or of a newer version.
    """
    if not folder.config.is_file():
        raise ValueError(
            f"{folder.path} is not a run folder (it has no config.json); "
            "make one with train.py --run-dir, or name another"
        )
    try:
        described = json.loads(folder.config.read_text(encoding="utf-8"))
        if described["format"] != FORMAT:
            raise ValueError(f"its format is {described['format']!r}, this version reads {FORMAT}")
        if set(described) - _OLDER_KEYS and described.get("crc32") != _crc32(described):
            raise ValueError("it does not match its checksum, so it was damaged or changed by hand")
        return Description(
            from_dict(described["config"]),
            str(described["data"]["sha256"]),
            _files(described.get("files", {})),
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{folder.config} cannot be used: {one_line(error)}; restore it") from None


def _files(found: Any) -> dict[str, str]:
    """Checksums by file name; no name leads out of the folder."""
    if not isinstance(found, dict) or not all(isinstance(each, str) for each in found.values()):
        raise ValueError("its files are no checksums by name")
    if strange := sorted(set(found) - set(_FILES)):
        raise ValueError(f"it names the file {strange[0]!r:.40}, which this version doesn't know")
    return found


def refuse_damaged_files(folder: RunFolder, *, without_data: bool = False) -> None:
    """Raises ValueError if a file of the run's beginning is missing, or no longer what it was.

    Args:
        folder: the run's.
        without_data: a copy of the training text is not needed, and may be missing.
    """
    for name, expected in read_description(folder).files.items():
        if without_data and name == CORPUS_FILE:
            continue
        path = folder.path / name
        try:
            if not path.is_file():
                raise FileNotFoundError(errno.ENOENT, "it is no file")
            found = _sha256(path)
        except OSError as error:
            raise ValueError(f"cannot read {path} ({error.strerror}); restore it") from None
        if found != expected:
            raise ValueError(
                f"{path} is not what the run wrote (its SHA-256 differs): it was damaged or "
                "changed; restore it"
            )


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _crc32(described: Mapping[str, Any]) -> int:
    """Of all the values but itself, however they are laid out in the file."""
    rest = {name: value for name, value in described.items() if name != "crc32"}
    return zlib.crc32(json.dumps(rest, sort_keys=True).encode())


def refuse_changes(folder: RunFolder, asked: AnyConfig) -> None:
    """Raises ValueError if a resumed run would differ in what its checkpoints depend on."""
    if changed := list(_changed(folder, asked).values()):
        raise ValueError(
            f"cannot resume {folder.path} with other settings: {'; '.join(changed)}; "
            "leave these as they were, or start a new run"
        )


def refuse_other_model(folder: RunFolder, asked: AnyConfig) -> None:
    """Raises ValueError if a new run has no use for this one's weights and vocabulary."""
    refuse_damaged_files(folder, without_data=True)
    changed = [
        change
        for name, change in _changed(folder, asked).items()
        if name in _OF_THE_VOCABULARY or name.startswith("model.")
    ]
    if changed:
        raise ValueError(
            f"cannot begin with the weights of {folder.path} and other settings of the model: "
            f"{'; '.join(changed)}; leave these as they are there, or leave --init-from"
        )


def _changed(folder: RunFolder, asked: AnyConfig) -> dict[str, str]:
    """The settings that a resumed run must have as it had them, and has not, by name."""
    kept = _flat(to_dict(read_description(folder).config))
    return {
        name: f"{name} is {value!r}, the run has {kept.get(name)!r}"
        for name, value in _flat(to_dict(asked)).items()
        if value != kept.get(name)
        and name not in _CHANGEABLE
        and not name.startswith(_CHANGEABLE_GROUPS)
    }


def refuse_other_data(folder: RunFolder, system: System) -> None:
    """Raises ValueError if the data or its vocabulary is not the run's."""
    if read_description(folder).sha256 != system.sha256:
        raise ValueError(
            f"the data is not what {folder.path} was trained on (its SHA-256 differs); "
            "name the old data with --data, or start a new run"
        )
    if Vocabulary.load(folder.vocabulary) != system.vocabulary:
        raise ValueError(
            f"{folder.vocabulary} is not the vocabulary of the run's data; restore it, or start a "
            "new run"
        )


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat


Step = int | Literal["newest", "best"]
"""A checkpoint: that of a step, the newest good one, or the one of the lowest held-out loss."""


def load(
    run_dir: str | os.PathLike[str], *, step: Step = "newest"
) -> tuple[LanguageModel, LanguageModelParams, Vocabulary]:
    """Loads a trained language model, without its optimizer, for use in other code.

    Args:
        run_dir: a folder that `train.py` made.
        step: which checkpoint.

    Returns:
        The model, its parameters, and the vocabulary that turns text into its ids.

    Raises:
        ValueError: it is no run folder of a language model, or it has no such checkpoint.
    """
    folder = RunFolder(Path(run_dir))
    config = read_description(folder).config
    if isinstance(config, ReviewsConfig):
        raise ValueError(
            f"{run_dir} holds a classifier, which writes nothing; classify texts with it "
            "(python -m lstm_jax.cli.classify RUN), or load it with load_classifier"
        )
    refuse_damaged_files(folder, without_data=True)
    vocabulary = Vocabulary.load(folder.vocabulary)
    model = LanguageModel(config.model, len(vocabulary))
    params = _load_params(folder, jax.eval_shape(model.init, random.key(0)), step)
    return model, params, vocabulary


def load_classifier(
    run_dir: str | os.PathLike[str], *, step: Step = "best"
) -> tuple[Classifier, ClassifierParams, Vocabulary, ReviewsConfig]:
    """Loads a trained classifier, without its optimizer, for use in other code.

    Args:
        run_dir: a folder that `train.py` made.
        step: which checkpoint.

    Returns:
        The model, its parameters (frozen vectors are its embedding), the vocabulary, and the
        settings that say how a text is cut.

    Raises:
        ValueError: it is no run folder of a classifier, or it has no such checkpoint.
    """
    folder = RunFolder(Path(run_dir))
    config = read_description(folder).config
    if not isinstance(config, ReviewsConfig):
        raise ValueError(f"{run_dir} holds a language model, no classifier; load it with load")
    refuse_damaged_files(folder, without_data=True)
    vocabulary = Vocabulary.load(folder.vocabulary)
    model = Classifier(config.model, len(vocabulary))
    params = _load_params(folder, jax.eval_shape(model.init, random.key(0)), step)
    if config.model.frozen_embedding:
        vectors = jnp.asarray(load_vectors(folder.path / VECTORS_FILE))
        params = params._replace(embedding=model.word_vectors(params, vectors))
        thawed = dataclasses.replace(config.model, frozen_embedding=False)
        model = Classifier(thawed, len(vocabulary))
    return model, params, vocabulary, config


def learnt_params(folder: RunFolder, template: Any) -> Any:
    """What a run has learnt: the parameters of its newest checkpoint, or a classifier's best one.

    Raises:
        ValueError: it has no checkpoint, or not of parameters like the template.
    """
    is_classifier = isinstance(read_description(folder).config, ReviewsConfig)
    return _load_params(folder, template, "best" if is_classifier else "newest")


def _load_params(folder: RunFolder, template: Any, step: Step) -> Any:
    with CheckpointStore(folder.checkpoints, read_only=True) as store:
        number = step if isinstance(step, int) else None
        if step == "best":
            number = store.best_step()
        return store.restore_params(template, step=number).state
