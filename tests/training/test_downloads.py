"""Corpora by name, from a server on this machine: what is kept, what is refused, what is said."""

import contextlib
import errno
import hashlib
import re
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pooch
import pytest

from lstm_jax.systems import downloads
from lstm_jax.systems.downloads import CACHE_VARIABLE, SOURCES, Source, fetch

CONTENT = b"Happy families are all alike.\r\n" * 5000
ANSWERS = {"/whole.txt": CONTENT, "/half.txt": CONTENT[:9], "/wrong.txt": CONTENT[::-1]}


def sources_at(port: int, path: str = "/whole.txt") -> dict[str, Source]:
    url = f"http://127.0.0.1:{port}{path}"
    return {"tiny": Source(url, hashlib.sha256(CONTENT).hexdigest(), "tiny.txt", "a test, 155 kB")}


class Server(ThreadingHTTPServer):
    """Answers by path, and remembers what it was asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[str] = []
        self.before_answering: Callable[[], object] = lambda: None

    def fetch(self, path: str = "/whole.txt") -> Path:
        return fetch("tiny", sources_at(self.server_port, path))


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        self.server.before_answering()
        with contextlib.suppress(ConnectionError):  # a client that gave up
            if self.path not in ANSWERS:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            self.wfile.write(ANSWERS[self.path])

    def log_message(self, *_: object) -> None:
        """The test's output stays its own."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The cache that the environment names, which isn't there yet."""
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def complaint(get: Callable[[], Path]) -> str:
    """What is said where there is no file; one line, with no exception of a library behind it."""
    with pytest.raises(ValueError) as raised:
        get()
    assert raised.value.__context__ is None or raised.value.__suppress_context__
    message = str(raised.value)
    assert "\n" not in message and "http://127.0.0.1:" in message and "--data PATH" in message
    return message


def test_a_file_is_downloaded_once_and_found_after_that(
    server: Server, cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = server.fetch()
    assert path == cache / "tiny.txt"
    assert path.read_bytes() == CONTENT
    url = f"http://127.0.0.1:{server.server_port}/whole.txt"
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", f"downloading tiny (a test, 155 kB) from {url}\n")
    assert server.fetch() == path
    assert server.requests == ["/whole.txt"]
    assert capfd.readouterr().err == ""
    assert list(cache.iterdir()) == [path]


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/missing.txt", "the server answered 404 Not Found"),
        ("/wrong.txt", "its SHA-256 is another"),
        ("/half.txt", "the connection broke off"),
    ],
)
def test_a_failed_download_has_a_cure(server: Server, cache: Path, path: str, reason: str) -> None:
    message = complaint(lambda: server.fetch(path))
    assert reason in message
    assert f"put the file by hand at {str(cache / 'tiny.txt')!r}" in message
    assert list(cache.iterdir()) == []
    assert server.requests == [path]


def test_a_server_that_is_not_there_or_never_answers_is_given_up(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as closed:  # bound but not listening: nobody else can take the port
        closed.bind(("127.0.0.1", 0))
        nobody = sources_at(closed.getsockname()[1])
        assert "the server cannot be reached" in complaint(lambda: fetch("tiny", nobody))
    monkeypatch.setattr(downloads, "_SILENCE_SECONDS", 0.05)
    answering = threading.Event()
    server.before_answering = answering.wait
    try:
        assert "did not answer in time" in complaint(server.fetch)
    finally:
        answering.set()
    assert list(cache.iterdir()) == []


def test_another_cached_file_is_neither_used_nor_replaced(server: Server, cache: Path) -> None:
    cache.mkdir()
    path = cache / "tiny.txt"
    path.write_bytes(CONTENT[:-1])
    assert "delete it" in (message := complaint(server.fetch)) and repr(str(path)) in message
    assert path.read_bytes() == CONTENT[:-1]
    path.unlink()
    path.mkdir()
    assert f"{str(path)!r} cannot be read or written (Is a directory)" in complaint(server.fetch)
    assert server.requests == []
    path.rmdir()
    assert server.fetch().read_bytes() == CONTENT


@pytest.mark.parametrize("below", ["", "deeper"])
def test_a_cache_that_cannot_be_written_is_named(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch, below: str
) -> None:
    cache.write_text("in the folder's place")
    monkeypatch.setenv(CACHE_VARIABLE, str(cache / below))
    message = complaint(server.fetch)
    assert f"{str(cache / below / 'tiny.txt')!r} cannot be read or written (" in message
    assert f"set {CACHE_VARIABLE}" in message
    assert server.requests == []
    assert cache.read_text() == "in the folder's place"


def test_a_full_disk_is_named_and_nothing_stays_on_it(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: object, url: str, output_file: str, pooch: object) -> None:
        Path(output_file).write_bytes(CONTENT[:10])
        raise OSError(errno.ENOSPC, "No space left on device", output_file)

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", full)
    assert "(No space left on device)" in complaint(server.fetch)
    assert list(cache.iterdir()) == []


def test_which_folder_the_environment_names(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / "user" / project)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    places = {"": "user/lstm_jax", "here": "here", "~/there": "home/there"}
    for value, place in places.items():
        monkeypatch.setenv(CACHE_VARIABLE, value)
        assert server.fetch() == tmp_path / place / "tiny.txt"


def test_every_source_is_pinned_to_one_version_of_one_file() -> None:
    assert len({source.file_name for source in SOURCES.values()}) == len(SOURCES)
    for source in SOURCES.values():
        assert re.fullmatch(r"[0-9a-f]{64}", source.sha256)
        assert re.match(r"https://(?!.*github)|https://.*/[0-9a-f]{40}/", source.url)  # a commit
        assert re.search(r"\d MB$", source.about)
