"""The law that the others rest on: a defect breaks it, and so does what a command touches."""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import law
import promises
import pytest
from law import Law
from processes import ROOT
from run_cases import snapshot


def _refuses(word: str, *, after: Path | None = None) -> None:
    if after is not None:
        after.write_text("half of it")
    raise ValueError(*[word] * bool(word))


def _catches_all() -> None:
    with contextlib.suppress(Exception):
        time.sleep(60)


DEFECTS: dict[str, Callable[[Path], object]] = {
    "another exception": lambda place: {}["format"],
    "a codec's own words": lambda place: "\ud800".encode(),
    "no word": lambda place: _refuses(""),
    "no end": lambda place: time.sleep(60),
    "no end, whatever comes": lambda place: _catches_all(),
    "more memory than there is": lambda place: bytes(1 << 34),
    "much memory": lambda place: b"x" * (law.MEBIBYTES + 50 << 20),
    "refused, and left a file": lambda place: _refuses("after a while", after=place / "out"),
    "changed a file": lambda place: (place / "text").write_text("changed"),
    "lost a file": lambda place: (place / "text").unlink(),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_a_defect_breaks_the_law(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if "no end" in name:
        monkeypatch.setattr(law, "SECONDS", 0.5)
    held = Law(tmp_path, ["planted", 0, 0, 0])
    with pytest.raises((AssertionError, KeyError)):  # noqa: SIM117
        with held.case({"text": b"as given"}, writes="out") as place:
            DEFECTS[name](place)
    assert held.row == ["planted", 0, 0, 0]


def test_what_a_command_touches_is_noticed(tmp_path: Path) -> None:
    for name in ("run/a", "run2/b", "c", "d"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "link").symlink_to("c")
    before = snapshot(tmp_path)
    (tmp_path / "run2/b").write_text("changed")
    (tmp_path / "c").unlink()
    (tmp_path / "link").unlink()
    (tmp_path / "link").symlink_to("d")
    (tmp_path / "folder").mkdir()
    touched = {path for path, _ in before.items() ^ snapshot(tmp_path).items()}
    assert touched == {"run2/b", "c", "link", "folder"}


def report(outcome: Any, **rows: Any) -> pytest.TestReport:
    properties = [(name, row) for name, found in rows.items() for row in found]
    return pytest.TestReport(
        "test", ("test", 1, "test"), {}, outcome, None, "call", user_properties=properties
    )


def test_tables_add_up_and_replace_what_is_between_their_markers(tmp_path: Path) -> None:
    parts = [
        f"<!-- table of {name}: begin -->old<!-- table of {name}: end -->"
        for name in promises.HEADS
    ]
    document = tmp_path / "page.md"
    document.write_text(f"before\n{parts[0]}between{parts[1]}\nafter\n")
    good = report("passed", faults=[["a fault", 1200, 1199, "seen"]], hostile=[["texts", 2, 1, 1]])
    other = report("passed", hostile=[["tar", 1, 0, 1]])
    promises.write_tables([good, other, report("failed")], document)
    assert "old" in document.read_text()  # what failed is printed alone
    lines = promises.write_tables([good, other], document).splitlines()
    for row in ("| a fault | 1,200 | 1,199 | seen |", "| tar | 1 | 0 | 1 |", "| all | 3 | 1 | 2 |"):
        assert row in lines
        assert row in document.read_text()
    assert "old" not in document.read_text()
    assert document.read_text().startswith("before\n")
    for broken in ("", parts[0], parts[0] * 2 + parts[1], "".join(parts).replace("begin", "end")):
        document.write_text(broken)
        with pytest.raises(ValueError, match="once each"):
            promises.document_with_tables(str(document))


def test_the_project_s_own_page_has_both_tables() -> None:
    assert promises.document_with_tables(str(ROOT / "docs" / "reliability.md"))
