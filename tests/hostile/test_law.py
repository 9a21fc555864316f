"""The law that the others rest on: a defect breaks it, and so does what a command touches."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import law
import pytest
from law import Surface, listing


def _fails(place: Path) -> None:
    raise KeyError("format")


def _speaks_of_codecs(place: Path) -> None:
    "\ud800".encode()


def _says_nothing(place: Path) -> None:
    raise ValueError


def _hangs(place: Path) -> None:
    time.sleep(60)


def _catches_all(place: Path) -> None:
    try:
        time.sleep(60)
    except Exception:
        return


def _breaks_a_promise(place: Path) -> None:
    assert not place.exists(), "a word was lost"


def _runs_out(place: Path) -> None:
    bytes(1 << 34)


def _takes_much(place: Path) -> None:
    b"x" * (law.MEBIBYTES + 50 << 20)


def _writes_and_refuses(place: Path) -> None:
    (place / "out").write_text("half of it")
    raise ValueError("refused, after a while")


def _changes_a_file(place: Path) -> None:
    (place / "text").write_text("changed")


def _loses_a_file(place: Path) -> None:
    (place / "text").unlink()


@pytest.mark.parametrize(
    "defect",
    [
        _fails,
        _speaks_of_codecs,
        _says_nothing,
        _hangs,
        _catches_all,
        _breaks_a_promise,
        _runs_out,
        _takes_much,
        _writes_and_refuses,
        _changes_a_file,
        _loses_a_file,
    ],
)
def test_a_defect_breaks_the_law(
    defect: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(law, "SECONDS", 0.5)
    surface = Surface(tmp_path, ["planted", 0, 0, 0])
    with pytest.raises((AssertionError, KeyError)):  # noqa: SIM117
        with surface.case({"text": b"as given"}, writes="out") as place:
            defect(place)
    assert surface.row == ["planted", 0, 0, 0]


def test_what_keeps_the_law_is_counted(tmp_path: Path) -> None:
    surface = Surface(tmp_path, ["planted", 0, 0, 0])
    with surface.case({"text": b"as given"}, writes="out") as place:
        (place / "out").write_text("all of it")
    with surface.case({}):
        raise ValueError("refused; give another")
    assert surface.row == ["planted", 2, 1, 1]
    assert list(tmp_path.iterdir()) == []


def test_what_a_command_touches_is_noticed(tmp_path: Path) -> None:
    for name in ("run/a", "run2/b", "c", "d"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "link").symlink_to("c")
    before = listing(tmp_path)
    assert listing(tmp_path) == before
    (tmp_path / "run2/b").write_text("changed")
    (tmp_path / "c").unlink()
    (tmp_path / "link").unlink()
    (tmp_path / "link").symlink_to("d")
    (tmp_path / "folder").mkdir()
    touched = {path for path, _ in before.items() ^ listing(tmp_path).items()}
    assert touched == {"run2/b", "c", "link", "folder"}
