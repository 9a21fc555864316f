"""Public corpora by name: downloaded once, checked, and kept in a cache folder."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from lstm_jax.files import reason, sha256_of

CACHE_VARIABLE = "LSTM_JAX_CACHE"
"""The environment variable that names the cache folder."""

_CONNECT_SECONDS = 10
_SILENCE_SECONDS = 30
_OWN_TEXT = "name a text of your own with --data PATH"


class Source(NamedTuple):
    """A public corpus.

    Attributes:
        name: what it is called here.
        url: of the very version whose hash is known.
        sha256: of the file's bytes, in hexadecimal.
        file_name: in the cache folder.
        about: what it is, and its size.
    """

    name: str
    url: str
    sha256: str
    file_name: str
    about: str


_ANNA = Source(
    name="anna",
    url=(
        "https://raw.githubusercontent.com/luan-rock/deep-learning/"
        "ef28a20c0cc28905d57e20705ce24af97d929e79/tensorboard/anna.txt"
    ),
    sha256="568bb39fc78aca98e9db91c4329dcd1aa5ec4c3df3aca2064ce5d6f023ae16c9",
    file_name="anna.txt",
    about="Tolstoy's Anna Karenina in English, 2.0 MB",
)
_TINY_SHAKESPEARE = Source(
    name="tinyshakespeare",
    url=(
        "https://raw.githubusercontent.com/karpathy/char-rnn/"
        "6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e/data/tinyshakespeare/input.txt"
    ),
    sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    file_name="tinyshakespeare.txt",
    about="scenes of Shakespeare's plays, 1.1 MB",
)

_IMDB = Source(
    name="imdb",
    url="https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz",
    sha256="c40f74a18d3b61f90feba1e17730e0d38e8b97c05fde7008942e91923d1658fe",
    file_name="aclImdb_v1.tar.gz",
    about="50,000 film reviews (Maas et al., 2011), 84 MB",
)

SOURCES: Mapping[str, Source] = MappingProxyType(
    {source.name: source for source in (_ANNA, _TINY_SHAKESPEARE, _IMDB)}
)
"""The corpora that can be fetched, by name."""


def fetch(source: Source, *, cache: Path | None = None) -> Path:
    """Returns a corpus's file, downloaded first if the cache does not hold it.

    The file appears in the cache whole and with the right SHA-256, or not at all; one line on
    standard error says what is being downloaded.

    Args:
        source: one of `SOURCES`.
        cache: the folder to keep it in; None means the one that the environment variable
            `LSTM_JAX_CACHE` names, and without that the user's cache folder of this system.

    Raises:
        ValueError: one line, with the cure, for a cached file that is not the one expected or
            cannot be read, a folder that cannot be written, or a download that failed.
    """
    path = _folder(cache) / source.file_name
    try:
        found = sha256_of(path)
    except (FileNotFoundError, NotADirectoryError):
        _download(source, path)
        return path
    except OSError as error:
        raise ValueError(
            f"{str(path)!r} cannot be read ({reason(error)}); make it a readable file, delete it, "
            f"set {CACHE_VARIABLE} to another folder, or {_OWN_TEXT}"
        ) from None
    if found != source.sha256:
        raise ValueError(
            f"{str(path)!r} is not the file {source.name!r} that is expected (damaged, or another "
            f"version: its SHA-256 is {found}, not {source.sha256}); delete it, and it will be "
            f"downloaded anew from {source.url}; or keep it and {_OWN_TEXT}"
        )
    return path


def _folder(cache: Path | None) -> Path:
    chosen = cache or os.environ.get(CACHE_VARIABLE)
    if not chosen:
        import pooch

        chosen = pooch.os_cache("lstm_jax")
    # Unlike Path.expanduser, this leaves a ~ that means nobody as it is, rather than raise.
    return Path(os.path.expanduser(chosen)).absolute()


def _download(source: Source, path: Path) -> None:
    import pooch

    pooch.get_logger().setLevel("ERROR")
    # Unless the whole answer is read at once, pooch leaves the connection of a failed one open.
    downloader = pooch.HTTPDownloader(timeout=(_CONNECT_SECONDS, _SILENCE_SECONDS), stream=False)
    print(
        f"downloading {source.name} ({source.about}) from {source.url}", file=sys.stderr, flush=True
    )
    try:
        pooch.retrieve(
            source.url,
            known_hash=f"sha256:{source.sha256}",
            fname=path.name,
            path=path.parent,
            downloader=downloader,
        )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"cannot download {source.name!r} from {source.url}: {_reason(error, path.parent)}; "
            f"put the file by hand at {str(path)!r}, or {_OWN_TEXT}"
        ) from None


def _reason(error: OSError | ValueError, folder: Path) -> str:
    """What went wrong, in a few words; requests' own messages are nested representations."""
    from requests import exceptions

    match error:
        case exceptions.HTTPError(response=response) if response is not None:
            return f"the server answered {response.status_code} {response.reason}"
        case exceptions.Timeout():
            return "the server did not answer in time"
        case exceptions.ChunkedEncodingError():
            return "the connection broke off"
        case exceptions.SSLError():
            return "the server's certificate was not accepted"
        case exceptions.ProxyError():
            return "the proxy that the environment names did not let it through"
        case exceptions.ConnectionError():
            return "the server cannot be reached (no network, or the connection was refused)"
        case exceptions.RequestException():
            return f"the request failed ({type(error).__name__})"
        case OSError():
            return (
                f"the cache folder {str(folder)!r} cannot be written ({error.strerror}), so set "
                f"{CACHE_VARIABLE} to one that can"
            )
    return "what arrived is another file (its SHA-256 is not the expected one)"
