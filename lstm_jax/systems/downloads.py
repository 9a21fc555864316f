"""Public corpora by name: downloaded once, verified, and cached."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

CACHE_VARIABLE = "LSTM_JAX_CACHE"
"""Environment variable that names the cache folder; by default the user's own."""

_CONNECT_SECONDS = 10
_SILENCE_SECONDS = 30


class Source(NamedTuple):
    """A downloadable corpus."""

    url: str  # of the exact version with this hash
    sha256: str  # of the file, in hexadecimal
    file_name: str  # name in the cache folder
    about: str  # description and size


SOURCES: Mapping[str, Source] = {
    "anna": Source(
        "https://raw.githubusercontent.com/luan-rock/deep-learning/"
        "ef28a20c0cc28905d57e20705ce24af97d929e79/tensorboard/anna.txt",
        "568bb39fc78aca98e9db91c4329dcd1aa5ec4c3df3aca2064ce5d6f023ae16c9",
        "anna.txt",
        "Tolstoy's Anna Karenina in English, 2.0 MB",
    ),
    "tinyshakespeare": Source(
        "https://raw.githubusercontent.com/karpathy/char-rnn/"
        "6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e/data/tinyshakespeare/input.txt",
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        "tinyshakespeare.txt",
        "scenes of Shakespeare's plays, 1.1 MB",
    ),
    "imdb": Source(
        "https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz",
        "c40f74a18d3b61f90feba1e17730e0d38e8b97c05fde7008942e91923d1658fe",
        "aclImdb_v1.tar.gz",
        "50,000 film reviews (Maas et al., 2011), 84 MB",
    ),
}
"""Corpora that can be downloaded, by name."""


def located(data: str) -> Path:
    """The file of a named corpus, downloaded if necessary; any other name is a path."""
    return fetch(data, SOURCES) if data in SOURCES else Path(data)


def fetch(name: str, sources: Mapping[str, Source]) -> Path:
    """Return a corpus's file, after downloading it if it is not cached.

    The cache folder is `LSTM_JAX_CACHE`, or else the user's cache folder of this system. The file
    appears there complete and verified, or not at all; a line on standard error reports the
    download.

    Raises ValueError, with the cure, if the cached file is unexpected or unreadable, the folder
    cannot be written, or the download fails.
    """
    import pooch

    pooch.get_logger().setLevel("ERROR")
    source = sources[name]
    cache = pooch.create(
        pooch.os_cache("lstm_jax"),
        base_url="",
        env=CACHE_VARIABLE,
        registry={each.file_name: f"sha256:{each.sha256}" for each in sources.values()},
        urls={each.file_name: each.url for each in sources.values()},
        allow_updates=False,
    )
    path = cache.abspath / source.file_name
    # Unless the whole response is read at once, pooch leaves a failed connection open.
    downloader = pooch.HTTPDownloader(timeout=(_CONNECT_SECONDS, _SILENCE_SECONDS), stream=False)
    try:
        if not (is_cached := path.exists()):
            line = f"downloading {name} ({source.about}) from {source.url}"
            print(line, file=sys.stderr, flush=True)
        return Path(cache.fetch(source.file_name, downloader=downloader))
    except OSError as error:
        problem = f"cannot download {name!r} from {source.url}: {_reason(error, path)}"
    except ValueError:
        what, cure = f"what came from {source.url}", ""
        if is_cached:
            what, cure = repr(str(path)), f"; delete it, and it is downloaded from {source.url}"
        problem = f"{what} is damaged, or not the {name!r} expected: its SHA-256 is another{cure}"
    raise ValueError(
        f"{problem}; put the file by hand at {str(path)!r}, or name a text of your own with "
        "--data PATH"
    )


def _reason(error: OSError, path: Path) -> str:
    """Short reason of a failed download; requests' own messages are nested representations."""
    from requests import exceptions

    if isinstance(error, exceptions.HTTPError) and error.response is not None:
        return f"the server answered {error.response.status_code} {error.response.reason}"
    for kind, words in {
        exceptions.Timeout: "the server did not answer in time",
        exceptions.ChunkedEncodingError: "the connection broke off",
        exceptions.SSLError: "the server's certificate was not accepted",
        exceptions.ProxyError: "the proxy that the environment names did not let it through",
        exceptions.RequestException: "the server cannot be reached (no network?)",
    }.items():
        if isinstance(error, kind):
            return words
    return (
        f"{str(path)!r} cannot be read or written ({error.strerror or type(error).__name__}), so "
        f"set {CACHE_VARIABLE} to another folder"
    )
