"""Files of named arrays: reads and writes safetensors, and reads PyTorch's own files.

Safetensors needs the optional extra with that library. PyTorch's `.pt` and `.pth` are pickles; only
PyTorch's restricted reader (`weights_only=True`) reads them, which builds tensors and plain
containers and runs no code from the file.
"""

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from lstm_jax.files import write_whole
from lstm_jax.interop.arrays import AnyArray, listed

PYTORCH_SUFFIXES = (".pt", ".pth")
SAFETENSORS_SUFFIX = ".safetensors"


def load_arrays(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a `.safetensors`, `.pt` or `.pth` file.

    Raises:
        ValueError: the name has another suffix, or the file is not valid.
        OSError: it cannot be read.

    Examples:
        >>> from lstm_jax import interop
        >>> layers = (lstm_jax.init_lstm(jax.random.key(0), 3, 4),)
        >>> interop.save_safetensors("layers.safetensors", interop.layers_to_plain(layers))
        >>> interop.load_arrays("layers.safetensors")["layers/0/b"].shape
        (16,)
    """
    os.stat(path)  # a mistyped name is an OSError, whatever it ends with
    suffix = Path(path).suffix
    if suffix == SAFETENSORS_SUFFIX:
        return load_safetensors(path)
    if suffix in PYTORCH_SUFFIXES:
        return load_pytorch(path)
    if suffix in (".keras", ".h5", ".hdf5"):
        raise ValueError(
            f"{path} is a file that Keras alone reads; load it there, and give what each recurrent "
            "layer's get_weights() returns to layers_from_keras"
        )
    raise ValueError(
        f"{path} ends with {repr(suffix) if suffix else 'nothing'}; expected one of "
        f"{', '.join((SAFETENSORS_SUFFIX, *PYTORCH_SUFFIXES))}"
    )


def load_safetensors(path: str | os.PathLike[str]) -> dict[str, AnyArray]:
    """Read the arrays of a safetensors file by name.

    Raises:
        ValueError: the file is not valid, or safetensors is not installed.
        OSError: it cannot be read.

    Examples:
        >>> from lstm_jax import interop
        >>> layers = (lstm_jax.init_lstm(jax.random.key(0), 3, 4),)
        >>> interop.save_safetensors("layers.safetensors", interop.layers_to_plain(layers))
        >>> layers = interop.layers_from_plain(interop.load_safetensors("layers.safetensors"))
    """
    library = _safetensors()
    try:
        return dict(library.numpy.load_file(path))
    except OSError as error:  # some of whose messages lack the name
        raise type(error)(f"cannot read {path}: {error}") from None
    except library.SafetensorError as error:
        raise ValueError(f"{path} is no whole safetensors file: {error}") from None


def save_safetensors(
    path: str | os.PathLike[str],
    arrays: Mapping[str, Any],
    *,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write arrays to a safetensors file atomically, replacing an existing one.

    `arrays` may be anything that numpy reads; `metadata` becomes the file's header.

    Raises:
        ValueError: the format lacks an array's dtype, or safetensors is not installed.
        OSError: the file cannot be written.

    Examples:
        >>> from lstm_jax import interop
        >>> layers = (lstm_jax.init_lstm(jax.random.key(0), 3, 4),)
        >>> interop.save_safetensors("layers.safetensors", interop.layers_to_pytorch(layers))
    """
    library = _safetensors()
    # The library writes an array's memory as it is, ignoring strides.
    dense = {name: _dense(name, array) for name, array in arrays.items()}
    data = library.numpy.save(dense, metadata=None if metadata is None else dict(metadata))
    write_whole(path, data)


def require_target(target: Path, *, overwrite: bool) -> None:
    """Raise ValueError if a command's output file is not writable, or exists already."""
    if not target.parent.is_dir():
        raise ValueError(f"there is no folder {target.parent}; make it first")
    if target.is_dir():
        raise ValueError(f"{target} is a folder; name a file")
    if target.exists() and not overwrite:
        raise ValueError(f"{target} is there already; name another, or use --overwrite")


def load_pytorch(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the tensors of a `state_dict` written by `torch.save`, on the CPU.

    If the file has a `state_dict` among other entries, as training frameworks save it, that is
    read.

    Raises:
        ValueError: the file holds something else, or PyTorch is not installed.
        OSError: it cannot be read.

    Examples:
        >>> from lstm_jax import interop
        >>> layers = interop.layers_from_pytorch(interop.load_pytorch("model.pt"))
    """
    try:
        import torch
    except ImportError:
        raise ValueError(f"reading {path} needs PyTorch; pip install torch") from None
    try:
        with warnings.catch_warnings(action="ignore"):  # those of other contents
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception:  # broken files can raise anything
        raise ValueError(
            f"{path} is no file of tensors alone; in PyTorch, torch.save(model.state_dict(), path)"
        ) from None
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, Mapping):
        raise ValueError(
            f"{path} holds a {type(loaded).__name__}; expected a state_dict of tensors"
        )
    found = dict(loaded)
    if strange := [n for n in found if not (isinstance(n, str) and hasattr(found[n], "detach"))]:
        raise ValueError(
            f"{path} holds {listed(strange)}, no tensors by name; save the state_dict alone"
        )
    return found


def _safetensors() -> Any:
    try:
        import safetensors
        import safetensors.numpy
    except ImportError:
        raise ValueError(
            "safetensors files need the library of that name; pip install 'lstm-jax[interop]'"
        ) from None
    return safetensors


def _dense(name: str, value: Any) -> AnyArray:
    array = np.array(value, order="C")
    if not (jnp.issubdtype(array.dtype, jnp.number) or array.dtype == np.bool_):
        raise ValueError(f"{name} is {array.dtype}; expected numbers")
    return array
