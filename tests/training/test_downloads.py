"""Corpora by name, from a server on this machine: what is kept, what is refused, what is said."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import re
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from lstm_jax.systems import downloads
from lstm_jax.systems.downloads import CACHE_VARIABLE, SOURCES, Source, fetch

CONTENT = b"Happy families are all alike.\r\n" * 5000


def source_at(port: int, path: str = "/whole.txt") -> Source:
    url = f"http://127.0.0.1:{port}{path}"
    return Source("tiny", url, hashlib.sha256(CONTENT).hexdigest(), "tiny.txt", "a test, 155 kB")


class Server(ThreadingHTTPServer):
    """Answers by path, and remembers what it was asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[str] = []
        self.before_answering: Callable[[], object] = lambda: None

    def source(self, path: str = "/whole.txt") -> Source:
        return source_at(self.server_port, path)


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        self.server.before_answering()
        with contextlib.suppress(ConnectionError):  # a client that gave up
            self.answer()

    def answer(self) -> None:
        if self.path == "/missing.txt":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        if self.path == "/half.txt":
            self.wfile.write(CONTENT[: len(CONTENT) // 2])
        elif self.path == "/wrong.txt":
            self.wfile.write(CONTENT[::-1])
        else:
            self.wfile.write(CONTENT)

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
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv(CACHE_VARIABLE, raising=False)


def complaint(source: Source, cache: Path) -> str:
    """What `fetch` says when it can't; one line that leaves no exception of a library behind it."""
    with pytest.raises(ValueError) as raised:
        fetch(source, cache=cache)
    assert raised.value.__context__ is None or raised.value.__suppress_context__
    message = str(raised.value)
    assert message.count("\n") == 0
    assert source.url in message
    assert "--data PATH" in message
    return message


def test_a_file_is_downloaded_once_and_found_after_that(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "new" / "folder"
    path = fetch(server.source(), cache=cache)
    assert path == cache / "tiny.txt"
    assert path.read_bytes() == CONTENT
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == f"downloading tiny (a test, 155 kB) from {server.source().url}\n"

    assert fetch(server.source(), cache=cache) == path
    assert server.requests == ["/whole.txt"]
    assert capsys.readouterr().err == ""
    assert list(cache.iterdir()) == [path]


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/missing.txt", "the server answered 404 Not Found"),
        ("/wrong.txt", "another file (its SHA-256 is not the expected one)"),
        ("/half.txt", "the connection broke off"),
    ],
)
def test_a_failed_download_leaves_nothing_and_says_what_to_do(
    server: Server, tmp_path: Path, path: str, reason: str
) -> None:
    message = complaint(server.source(path), tmp_path)
    assert reason in message
    assert f"put the file by hand at {str(tmp_path / 'tiny.txt')!r}" in message
    assert list(tmp_path.iterdir()) == []
    assert server.requests == [path]


def test_a_refused_connection_says_what_to_do(tmp_path: Path) -> None:
    with socket.socket() as closed:  # bound but not listening: nobody else can take the port
        closed.bind(("127.0.0.1", 0))
        message = complaint(source_at(closed.getsockname()[1]), tmp_path)
    assert "the server cannot be reached" in message
    assert str(tmp_path / "tiny.txt") in message
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_never_answers_is_given_up(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "_SILENCE_SECONDS", 0.05)
    answering = threading.Event()
    server.before_answering = answering.wait
    try:
        assert "did not answer in time" in complaint(server.source(), tmp_path)
    finally:
        answering.set()
    assert list(tmp_path.iterdir()) == []


def test_a_cached_file_that_is_another_is_neither_used_nor_replaced(
    server: Server, tmp_path: Path
) -> None:
    path = tmp_path / "tiny.txt"
    path.write_bytes(CONTENT[:-1])
    message = complaint(server.source(), tmp_path)
    assert repr(str(path)) in message
    assert "delete it" in message
    assert path.read_bytes() == CONTENT[:-1]
    assert server.requests == []

    path.unlink()
    assert fetch(server.source(), cache=tmp_path).read_bytes() == CONTENT


def test_a_folder_in_the_file_s_place_is_named(server: Server, tmp_path: Path) -> None:
    (tmp_path / "tiny.txt").mkdir()
    with pytest.raises(ValueError, match=r"tiny\.txt' cannot be read \(Is a directory\)"):
        fetch(server.source(), cache=tmp_path)
    assert server.requests == []


@pytest.mark.parametrize("below", ["", "deeper"])
def test_a_cache_that_cannot_be_written_is_named(
    server: Server, tmp_path: Path, below: str
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the folder's place")
    message = complaint(server.source(), blocked / below)
    assert f"the cache folder {str(blocked / below)!r} cannot be written (" in message
    assert CACHE_VARIABLE in message
    assert server.requests == []
    assert blocked.read_text() == "in the folder's place"


def test_a_full_disk_is_named_and_nothing_stays_on_it(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pooch

    def full(_: object, url: str, output_file: str, pooch: object) -> None:
        Path(output_file).write_bytes(CONTENT[:10])
        raise OSError(errno.ENOSPC, "No space left on device", output_file)

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", full)
    assert "(No space left on device)" in complaint(server.source(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_two_at_the_same_time_both_get_the_whole_file(server: Server, tmp_path: Path) -> None:
    # Neither is answered before both have asked, so both have found the cache empty.
    server.before_answering = threading.Barrier(2, timeout=10).wait
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: fetch(server.source(), cache=tmp_path), range(2)))
    assert len(server.requests) == 2
    assert found == [tmp_path / "tiny.txt"] * 2
    assert found[0].read_bytes() == CONTENT
    assert list(tmp_path.iterdir()) == found[:1]


def test_the_environment_names_the_cache_and_an_argument_goes_before_it(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "named"))
    assert fetch(server.source()) == tmp_path / "named" / "tiny.txt"
    other = tmp_path / "other"
    assert fetch(server.source(), cache=other) == other / "tiny.txt"


@pytest.mark.parametrize("variable", [None, ""])
def test_without_it_the_user_s_cache_folder_is_used(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str | None
) -> None:
    import pooch

    if variable is not None:
        monkeypatch.setenv(CACHE_VARIABLE, variable)
    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / project)
    assert fetch(server.source()) == tmp_path / "lstm_jax" / "tiny.txt"


def test_a_relative_cache_still_gives_a_whole_path(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert fetch(server.source(), cache=Path("here")) == tmp_path / "here" / "tiny.txt"
    assert fetch(server.source(), cache=Path("~/there")) == tmp_path / "home/there/tiny.txt"


def test_every_source_is_pinned_to_one_version_of_one_file() -> None:
    assert set(SOURCES) == {"anna", "tinyshakespeare", "imdb"}
    assert len({source.file_name for source in SOURCES.values()}) == len(SOURCES)
    for name, source in SOURCES.items():
        assert source.name == name
        assert re.fullmatch(r"[0-9a-f]{64}", source.sha256)
        assert source.url.startswith("https://")
        if "github" in source.url:
            commit = r"https://raw\.githubusercontent\.com(/[\w-]+){2}/[0-9a-f]{40}/[\w./-]+\.txt"
            assert re.fullmatch(commit, source.url)
        assert re.search(r"\d MB$", source.about)
